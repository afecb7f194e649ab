#!/usr/bin/env python3
"""Time to the first instruction of a container, as a pod and as a plain batch job.

Runs as alice on the site's login node. All clocks are one machine's. A container
says when it runs by printing `date +%s.%N`; the batch step's start is when Slurm
opens the file for its output, the last thing before it starts the script. Pods and plain jobs take turns, so both see the same machine.
"""

import argparse
import ctypes
import json
import os
import shutil
import statistics
import struct
import subprocess
import threading
import time

from apiserver import Server, call

IMAGE = "login:5000/toolbox:1"  # busybox's date knows no nanoseconds
STAMP = "date +%s.%N"
HOME = os.path.expanduser("~")
HPK_HOME = os.path.join(HOME, ".hpk")


class Api(Server):
    """With one connection that all requests take."""

    def __init__(self):
        super().__init__()
        self.connection = self.connect()

    def call(self, method, path, body=None):
        self.connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        reply = self.connection.getresponse()
        text = reply.read()
        if reply.status >= 300:
            raise RuntimeError("%s %s: %d %s" % (method, path, reply.status, text[:300]))
        return text


class Watch(threading.Thread):
    """Notes when each pod of the namespace is first seen ended."""

    def __init__(self, api, path):
        super().__init__(daemon=True)
        self.connection = api.connect()
        self.connection.request("GET", path + "?watch=true")
        self.reply = self.connection.getresponse()
        self.ended = {}
        self.changed = threading.Condition()
        self.start()

    def run(self):
        for line in self.reply:
            event = json.loads(line)
            pod = event["object"]
            if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                with self.changed:
                    self.ended.setdefault(pod["metadata"]["name"], (time.time(), pod))
                    self.changed.notify_all()

    def wait(self, names, seconds=180):
        with self.changed:
            if not self.changed.wait_for(lambda: all(n in self.ended for n in names), seconds):
                raise RuntimeError("pods that did not end: %s" % [n for n in names if n not in self.ended])
            return [self.ended[n] for n in names]


class Opened(threading.Thread):
    """Notes when files of a folder, and of folders that are made in it, are opened (inotify)."""

    OPEN, CREATE, FOLDER = 0x20, 0x100, 0x40000000

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.inotify = self.libc.inotify_init1(0)
        self.folders, self.times = {}, {}
        self.watch(folder)
        self.start()

    def watch(self, folder):
        self.folders[self.libc.inotify_add_watch(self.inotify, folder.encode(), self.OPEN | self.CREATE)] = folder

    def run(self):
        while True:
            events, now, at = os.read(self.inotify, 65536), time.time(), 0
            while at < len(events):
                watch, mask, _, length = struct.unpack_from("iIII", events, at)
                name = events[at + 16 : at + 16 + length].split(b"\0")[0].decode()
                at += 16 + length
                path = os.path.join(self.folders.get(watch, ""), name)
                if mask & self.FOLDER:
                    if mask & self.CREATE:
                        self.watch(path)
                elif mask & self.OPEN:
                    self.times.setdefault(path, []).append(now)

    def last(self, path, before):
        return max((t for t in self.times.get(path, []) if t < before), default=float("nan"))


class Bench:
    def __init__(self):
        self.folder = os.path.join(HOME, "bench-start")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        self.image = os.path.join(self.folder, "image")
        call("apptainer", "--silent", "build", "--no-https", "--sandbox", self.image, "docker://" + IMAGE)
        self.api = Api()
        self.opened = Opened(self.folder)
        self.opened.watch(os.path.join(HPK_HOME, "pods"))
        self.namespace = "bench-start"
        self.pods = "/api/v1/namespaces/%s/pods" % self.namespace
        subprocess.run(["kubectl", "delete", "namespace", self.namespace, "--ignore-not-found"], capture_output=True)
        call("kubectl", "create", "namespace", self.namespace)
        call("kubectl", "-n", self.namespace, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
        self.watch = Watch(self.api, self.pods)

    def submit_plain(self, name):
        """A batch job that is a bare apptainer exec; gives the time it was asked for."""
        script = "#!/bin/sh\nexec apptainer exec %s sh -c '%s'\n" % (self.image, STAMP)
        asked = time.time()
        process = subprocess.Popen(
            ["sbatch", "--parsable", "--wait", "--mem=64M", "-o", os.path.join(self.folder, name), "-J", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        process.stdin.write(script)
        process.stdin.close()
        return asked, process

    def plain_times(self, name, asked):
        path = os.path.join(self.folder, name)
        with open(path) as file:
            first = float(file.read())
        return {"total": first - asked, "in_job": first - self.opened.last(path, first), "first": first}

    def create_pod(self, name, containers=1):
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "c%d" % i,
                        "image": IMAGE,
                        "command": ["sh", "-c", STAMP],
                        "resources": {"requests": {"memory": "64Mi"} if i == 0 else {}},
                    }
                    for i in range(containers)
                ],
            },
        }
        asked = time.time()
        self.api.call("POST", self.pods, body)
        return asked

    def pod_times(self, name, asked, seen, pod, containers=1):
        if pod["status"]["phase"] != "Succeeded":
            raise RuntimeError("pod %s: %s" % (name, json.dumps(pod["status"])))
        stamps = [
            float(self.api.call("GET", "%s/%s/log?container=c%d" % (self.pods, name, i))) for i in range(containers)
        ]
        out = os.path.join(HPK_HOME, "pods", pod["metadata"]["uid"], "job.out")
        start = self.opened.last(out, stamps[0])
        return {
            "total": stamps[0] - asked,
            "in_job": stamps[0] - start,
            "first": stamps[0],
            "last": max(stamps),
            "end_seen": seen - max(stamps),
            "spread": max(stamps) - min(stamps),
        }

    def one_pod(self, name, containers=1):
        asked = self.create_pod(name, containers)
        ((seen, pod),) = self.watch.wait([name])
        times = self.pod_times(name, asked, seen, pod, containers)
        self.api.call("DELETE", self.pods + "/" + name)
        return times

    def one_plain(self, name):
        asked, process = self.submit_plain(name)
        process.wait()
        return self.plain_times(name, asked)

    def many_pods(self, count):
        names = ["many-%d" % i for i in range(count)]
        began = time.time()
        asked = [self.create_pod(name) for name in names]
        ended = self.watch.wait(names)
        firsts = [self.pod_times(n, a, seen, pod)["first"] - began for n, a, (seen, pod) in zip(names, asked, ended)]
        return min(firsts), max(firsts), max(seen for seen, _ in ended) - began

    def many_plain(self, count):
        began = time.time()
        jobs = [("plain-many-%d" % i,) + self.submit_plain("plain-many-%d" % i) for i in range(count)]
        for _, _, process in jobs:
            process.wait()
        firsts = [self.plain_times(name, asked)["first"] - began for name, asked, _ in jobs]
        return min(firsts), max(firsts)

    def close(self):
        call("kubectl", "delete", "namespace", self.namespace, "--wait=false")
        shutil.rmtree(self.folder)


def row(what, pod, plain):
    m = statistics.median
    print(
        "| %s | %.0f (%.0f–%.0f) | %.0f (%.0f–%.0f) | %.2f | %+.0f ms |"
        % (
            what,
            m(pod) * 1e3,
            min(pod) * 1e3,
            max(pod) * 1e3,
            m(plain) * 1e3,
            min(plain) * 1e3,
            max(plain) * 1e3,
            m(pod) / m(plain),
            (m(pod) - m(plain)) * 1e3,
        )
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=10)
    p.add_argument("--many", type=int, default=20)
    options = p.parse_args()
    bench = Bench()
    bench.one_pod("warm-up")
    bench.one_plain("warm-up")
    pods, plains, tens = [], [], []
    for i in range(options.runs):
        plains.append(bench.one_plain("plain-%d" % i))
        pods.append(bench.one_pod("pod-%d" % i))
        tens.append(bench.one_pod("ten-%d" % i, containers=10))
    column = lambda rows, name: [r[name] for r in rows]
    print("## From request to first instruction\n")
    print(
        "| ms, %d runs: median (least–most) | pod | plain sbatch of a bare apptainer exec | ratio | difference |"
        % options.runs
    )
    print("|---|---|---|---|---|")
    row("request → first instruction", column(pods, "total"), column(plains, "total"))
    row("Slurm starts the batch step → first instruction", column(pods, "in_job"), column(plains, "in_job"))
    row("same, pod of 10 containers", column(tens, "in_job"), column(plains, "in_job"))
    spread = statistics.median(column(tens, "spread")) * 1e3
    print(
        "\nA pod of 10 containers: the last starts %.0f ms after the first, %.1f ms for each further one."
        % (spread, spread / 9)
    )
    end = column(pods, "end_seen")
    print(
        "A container's last instruction → Succeeded at the API: %.0f ms (%.0f–%.0f)."
        % (statistics.median(end) * 1e3, min(end) * 1e3, max(end) * 1e3)
    )
    least, most, seen = bench.many_pods(options.many)
    plain_least, plain_most = bench.many_plain(options.many)
    print("\n| %d at once, seconds from the first request | pods | plain sbatch | ratio |" % options.many)
    print("|---|---|---|---|")
    print(
        "| first instruction, first–last | %.2f–%.2f | %.2f–%.2f | %.2f |"
        % (least, most, plain_least, plain_most, most / plain_most)
    )
    print("| all Succeeded at the API | %.2f | | |" % seen)
    bench.close()


if __name__ == "__main__":
    main()
