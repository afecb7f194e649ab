#!/usr/bin/env python3
"""One image in both layouts: time to load, bytes and inodes, and time to the first instruction of a pod.

Runs as alice on the site's login node. The image is the toolbox with many small files more. Pods of both layouts take turns, so
both see the same machine. "in job" is from Slurm's opening of the job's output, the last thing before it starts the script.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time

import measure_start as start
from apiserver import call

LAYOUTS = ("folder", "squashfs")
# What a program does that begins: looks for many files and reads some of them.
WALK = "date +%s.%N; find /data -type f | wc -l; cat /data/1/* > /dev/null; date +%s.%N"


class Images(start.Bench):
    def __init__(self, files):
        self.files = files
        self.folder = os.path.join(start.HOME, "bench-images")
        shutil.rmtree(self.folder, ignore_errors=True)
        data = os.path.join(self.folder, "data")
        for n in range(files):
            path = os.path.join(data, str(n // 300))
            if n % 300 == 0:
                os.makedirs(path)
            with open(os.path.join(path, "file-%d" % n), "w") as file:
                file.write("content of file %d\n" % n * (n % 40))
        layout = os.path.join(self.folder, "layout")
        tls = "--src-tls-verify=false"
        call("skopeo", "copy", "-q", "--insecure-policy", tls, "docker://" + start.IMAGE, "oci:%s:base" % layout)
        call("umoci", "insert", "--rootless", "--image", layout + ":base", "--tag", "many", data, "/data")
        for name in LAYOUTS:
            # Another configuration is another image.
            label = "bench.layout=%s" % name
            call("umoci", "config", "--image", layout + ":many", "--tag", name, "--config.label", label)
        self.layout = layout
        self.api = start.Api()
        self.opened = start.Opened(self.folder)
        self.opened.watch(os.path.join(start.HPK_HOME, "pods"))
        self.namespace = "bench-images"
        self.pods = "/api/v1/namespaces/%s/pods" % self.namespace
        subprocess.run(["kubectl", "delete", "namespace", self.namespace, "--ignore-not-found"], capture_output=True)
        call("kubectl", "create", "namespace", self.namespace)
        call("kubectl", "-n", self.namespace, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
        self.watch = start.Watch(self.api, self.pods)

    def image(self, layout):
        return "bench-images:" + layout

    def load(self, layout):
        subprocess.run(["hpk", "image", "rm", self.image(layout)], capture_output=True)
        began = time.time()
        source = "oci:%s:%s" % (self.layout, layout)
        call("hpk", "image", "load", source, "--name", self.image(layout), "--layout", layout)
        return time.time() - began

    def takes(self, layout):
        images = json.loads(call("hpk", "image", "list", "-o", "json"))["images"]
        (image,) = [i for i in images if any(n.endswith("/" + self.image(layout)) for n in i["names"])]
        return image

    def pod(self, name, layout):
        start.IMAGE = self.image(layout)
        return self.one_pod(name)

    def walk(self, name, layout):
        """Seconds in which a container reads through the image, first and again."""
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "c0",
                        "image": self.image(layout),
                        "command": ["sh", "-c", WALK + ";" + WALK],
                        "resources": {"requests": {"memory": "256Mi"}},
                    }
                ],
            },
        }
        self.api.call("POST", self.pods, body)
        self.watch.wait([name])
        lines = self.api.call("GET", "%s/%s/log" % (self.pods, name)).decode().split()
        if [lines[1], lines[4]] != [str(self.files)] * 2:
            raise RuntimeError("%s has not all files: %s" % (layout, lines))
        self.api.call("DELETE", self.pods + "/" + name)
        return float(lines[2]) - float(lines[0]), float(lines[5]) - float(lines[3])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=10)
    p.add_argument("--files", type=int, default=30000)
    options = p.parse_args()
    bench = Images(options.files)
    loads = {layout: [bench.load(layout) for _ in range(3)] for layout in LAYOUTS}
    pods = {layout: [] for layout in LAYOUTS}
    for layout in LAYOUTS:
        bench.pod("warm-" + layout, layout)
    for n in range(options.runs):
        for layout in LAYOUTS:
            pods[layout].append(bench.pod("%s-%d" % (layout, n), layout))
    walks = {layout: [bench.walk("walk-%s-%d" % (layout, n), layout) for n in range(3)] for layout in LAYOUTS}
    m = statistics.median

    def row(what, unit, of):
        folder, squashfs = (of(layout) for layout in LAYOUTS)
        print(
            "| %s | %s %s | %s %s | %.2f |" % (what, "%.4g" % folder, unit, "%.4g" % squashfs, unit, squashfs / folder)
        )

    print("## images: one file beside a folder of %d files and the toolbox\n" % options.files)
    print("| what | folder | squashfs | ratio |\n|---|---|---|---|")
    row("load from an OCI layout", "s", lambda way: m(loads[way]))
    row("bytes in the store", "MB", lambda way: bench.takes(way)["bytes"] / 1e6)
    row("inodes in the store", "", lambda way: bench.takes(way)["inodes"])
    row("pod asked for to first instruction", "ms", lambda way: m(t["total"] for t in pods[way]) * 1e3)
    row("the same, least", "ms", lambda way: min(t["total"] for t in pods[way]) * 1e3)
    row("job's start to first instruction", "ms", lambda way: m(t["in_job"] for t in pods[way]) * 1e3)
    row("the same, least", "ms", lambda way: min(t["in_job"] for t in pods[way]) * 1e3)
    row("find of all files, 300 read", "ms", lambda way: m(w[0] for w in walks[way]) * 1e3)
    row("the same again", "ms", lambda way: m(w[1] for w in walks[way]) * 1e3)
    print("\n%d pods of each, in turns; 3 loads." % options.runs)
    for layout in LAYOUTS:
        subprocess.run(["hpk", "image", "rm", bench.image(layout)], capture_output=True)
    bench.close()


main()
