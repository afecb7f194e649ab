#!/usr/bin/env python3
"""A fault campaign on the site: pods come, work and go, while parts of the cluster are killed, stopped and cut off.

At its end three witnesses are compared for every pod: the ledger that its container wrote on the shared home, Slurm's
accounting, and the API's object. The campaign fails when a pod ran twice or has two jobs, when one is lost, stuck or
told wrongly, and when a job is left without its pod.

    chaos.py [--seconds 1800] [--seed N] [--short] [--out FILE]

The same seed makes the same faults and pods; how they meet is up to the machine. Needs a site that is up (make site-up).
"""

import argparse
import collections
import json
import random
import sys
import time

import faults
import workload

# Most pods at a time, and how long all may take to end after the last fault.
AT_ONCE = 12
QUIET = 240


def say(text):
    print(f"[{time.monotonic() - BEGAN:5.0f} s] {text}", flush=True)


BEGAN = time.monotonic()


class Campaign:
    def __init__(self, seconds, seed, kinds):
        self.random = random.Random(seed)
        self.until = time.monotonic() + seconds
        self.namespace = f"chaos-{seed}-{int(time.time())}"
        self.ledger = f"/home/alice/{self.namespace}"
        self.kinds = kinds
        self.pods = {}
        self.struck = collections.Counter()
        self.made = 0

    def kubectl(self, arguments, text=None):
        return faults.alice(f"kubectl --request-timeout=20s {arguments}", text=text)

    def begin(self):
        faults.alice(f"mkdir -p {self.ledger}", check=True)
        self.insist(f"create namespace {self.namespace}")

    def insist(self, arguments, text=None):
        """The API server may be away: again, until it has taken it. What it had taken before is no fault."""
        for _ in range(60):
            done = self.kubectl(arguments, text=text)
            words = done.stderr
            if done.returncode == 0 or "AlreadyExists" in words or "already exists" in words or "NotFound" in words:
                return done.stdout
            time.sleep(1)
        raise SystemExit(f"kubectl {arguments}: {words}")

    def listed(self):
        """Pods of the campaign by name; None: the API server is away."""
        done = self.kubectl(f"-n {self.namespace} get pods -o json")
        if done.returncode != 0:
            return None
        return {pod["metadata"]["name"]: pod for pod in json.loads(done.stdout)["items"]}

    def add(self, living):
        """New pods, as many as there is room for."""
        new = []
        for _ in range(min(AT_ONCE - living, 4)):
            kind = self.random.choice(list(workload.KINDS))
            self.made += 1
            name = f"{kind}-{self.made}"
            seconds = self.random.randint(1, 25)
            new.append(workload.pod(self.namespace, name, kind, seconds, self.ledger))
            self.pods[name] = {"kind": kind, "uid": None, "struck": False, "deleted": False}
        if new:
            self.insist("create -f -", json.dumps({"apiVersion": "v1", "kind": "List", "items": new}))

    def turn(self):
        """One look at the pods: new ones, deletions, and who can be struck."""
        listed = self.listed()
        if listed is None:
            time.sleep(1)
            return
        for name, pod in listed.items():
            self.pods[name]["uid"] = pod["metadata"]["uid"]
        running = [name for name, pod in listed.items() if pod["status"].get("phase") == "Running"]
        doomed = [name for name in running if self.pods[name]["kind"] == "deleted"]
        for name in doomed[: len(doomed) // 2 + 1]:
            self.pods[name]["deleted"] = True
            self.insist(f"-n {self.namespace} delete pod {name} --wait=false")
        living = sum(pod["status"].get("phase") in ("Pending", "Running") for pod in listed.values())
        self.add(living)
        targets = [self.pods[name] for name in running if not self.pods[name]["deleted"]]
        kind = self.random.choice(self.kinds)
        say(f"{kind}; {len(running)} pods run, {self.made} made")
        self.struck[kind] += 1
        faults.KINDS[kind](self.random, targets)

    def run(self):
        self.begin()
        self.add(0)
        while time.monotonic() < self.until:
            time.sleep(self.random.uniform(0.5, 6))
            self.turn()
        say("no more faults: all are to end")
        for name, pod in self.pods.items():
            if pod["kind"] == "deleted" and not pod["deleted"]:
                pod["deleted"] = True
                self.insist(f"-n {self.namespace} delete pod {name} --wait=false --ignore-not-found")
        end = time.monotonic() + QUIET
        while time.monotonic() < end:
            listed = self.listed()
            if listed is not None:
                for name, pod in listed.items():
                    self.pods[name]["uid"] = pod["metadata"]["uid"]
                phases = [pod["status"].get("phase") for pod in listed.values()]
                gone = not any(self.pods[name]["deleted"] for name in listed)
                if gone and all(phase in ("Succeeded", "Failed") for phase in phases):
                    break
            time.sleep(2)

    def jobs(self):
        """Ids of jobs by their comment, from accounting and from the queue."""
        found = collections.defaultdict(set)
        rows = faults.alice("sacct -X -n -P -S now-6hours --duplicates -o jobidraw,comment").stdout.splitlines()
        rows += faults.alice("squeue -h -o '%i|%k'").stdout.splitlines()
        for row in rows:
            job, _, comment = row.partition("|")
            if comment:
                found[comment.strip()].add(job)
        return found

    def judge(self):
        listed = self.listed() or {}
        jobs = self.jobs()
        lines = faults.alice(f"cd {self.ledger} && grep -H . * 2>/dev/null").stdout.splitlines()
        ledger = collections.defaultdict(list)
        for line in lines:
            name, _, text = line.partition(":")
            ledger[name].append(text)
        words = collections.Counter()
        bad = []
        for name, pod in self.pods.items():
            of = jobs.get(pod["uid"], set())
            verdict = workload.Verdict(
                pod["kind"], listed.get(name), ledger.get(name, []), of, pod["struck"], pod["deleted"]
            )
            words[verdict.word] += 1
            if verdict.word not in ("right", "killed"):
                bad.append(f"{name} ({pod['uid']}) is {verdict.word}: {verdict.text}")
        known = {pod["uid"] for pod in self.pods.values()}
        living = {
            pod["metadata"]["uid"] for pod in listed.values() if pod["status"].get("phase") in ("Pending", "Running")
        }
        queue = faults.alice("squeue -h -o '%i|%k'").stdout.splitlines()
        for row in queue:
            job, _, comment = row.partition("|")
            if comment in known and comment not in living:
                bad.append(f"job {job} is left of pod {comment}")
        return words, bad

    def clear(self):
        self.kubectl(f"delete namespace {self.namespace} --wait=false")
        faults.alice(f"rm -r {self.ledger}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=1800, help="how long faults are made")
    parser.add_argument("--seed", type=int, default=None, help="of pods and faults; default: a new one")
    parser.add_argument("--short", action="store_true", help="the few kinds of a quick check")
    parser.add_argument("--out", help="write the figures there, as JSON")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    campaign = Campaign(asked.seconds, seed, list(faults.SHORT if asked.short else faults.KINDS))
    say(f"seed {seed}, {asked.seconds} s of faults")
    campaign.run()
    words, bad = campaign.judge()
    figures = {
        "seed": seed,
        "seconds": asked.seconds,
        "faults": dict(sorted(campaign.struck.items())),
        "pods": len(campaign.pods),
        "verdicts": dict(words),
        "bad": bad,
    }
    if asked.out:
        with open(asked.out, "w") as file:
            json.dump(figures, file, indent=1)
    for kind, times in sorted(campaign.struck.items()):
        print(f"{times:5} {kind}")
    print(f"{len(campaign.pods)} pods: " + ", ".join(f"{count} {word}" for word, count in sorted(words.items())))
    for line in bad:
        print(line)
    if bad:
        print(f"pods and ledger of {campaign.namespace} are left for a look")
        return 1
    campaign.clear()
    return 0


if __name__ == "__main__":
    sys.exit(main())
