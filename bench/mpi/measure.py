"""MPI steps of pods beside plain srun and `srun apptainer exec`: messages, start, memory.

    measure.py SX PING-PONG.C [--rounds N]

In each round every way runs once, in turns, so that what else the machine does falls on all alike. Prints a Markdown
section: medians over the rounds with the range in brackets, and the median of the rounds' own ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

MPI = "login:5000/mpi:1"
NAMESPACE = f"bench-mpi-{os.getpid()}"
SIZES = ["8", "20000", "4194304", "60"]
PLACES = {"within a node": (2, 1), "across nodes": (2, 2)}
WAYS = ["plain srun", "srun apptainer exec", "pod"]
# Ranks that have told when they started stay, so that what is beside them can be measured.
STAY = 'p=$1; shift; "$p" "$@"; sleep 4'


class Site:
    def __init__(self, sx):
        self.sx = sx

    def run(self, node, *command, user=None, text=None):
        words = [self.sx, node, *(["-u", user] if user else []), *command]
        done = subprocess.run(words, input=text, text=True, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def alice(self, *command, text=None):
        return self.run("login", *command, user="alice", text=text)

    def kubectl(self, *words, text=None):
        return self.alice("kubectl", "-n", NAMESPACE, *words, text=text)


def script_of(program):
    """A shell in which $1 is the program."""
    return ["sh", "-c", STAY, "sh", program]


class Slurm:
    """srun by itself, in one allocation for all rounds."""

    def __init__(self, site, program, image):
        self.site, self.program, self.image = site, program, image
        wanted = ["--nodes=2", "--ntasks-per-node=8", "--mem-per-cpu=64M", "--output=/dev/null", "--wrap=sleep 7200"]
        self.job = site.alice("sbatch", "--parsable", *wanted).strip()
        while "RUNNING" not in site.alice("squeue", "-h", "-j", self.job, "-o", "%T"):
            time.sleep(0.2)

    def run(self, apptainer, ranks, nodes, sizes, beside=None):
        inside = ["apptainer", "-s", "exec", "--bind", "/home/alice", self.image] if apptainer else []
        flags = f"--jobid={self.job} --overlap --mpi=pmix -n{ranks} -N{nodes} --ntasks-per-node={ranks // nodes}"
        line = [*inside, *script_of(self.program), *sizes]
        command = ["env", "OMPI_MCA_btl_tcp_disable_family=6", "srun", *flags.split(), *line]
        return timed(self.site, "login", command, beside)

    def end(self):
        self.site.alice("scancel", self.job)


def timed(site, node, command, beside):
    """Lines of rank 0, the moment at which srun was started, and what `beside` told while the ranks were there."""
    started = f"date +%s.%N >&2; exec {' '.join(quote(word) for word in command)}"
    words = [site.sx, node, "-u", "alice", "sh", "-c", started]
    with subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        begun = float(child.stderr.readline())
        first = child.stdout.readline()
        told = beside() if beside and first else None
        rest = child.stdout.read()
        errors = child.stderr.read()
    if child.returncode:
        raise SystemExit(f"{command}\n{first}{rest}{errors}")
    return (first + rest).split("\n"), begun, told


def quote(word):
    return "'" + word.replace("'", "'\\''") + "'"


class Pod:
    """The same as a pod's MPI step."""

    def __init__(self, site, program):
        self.site, self.program = site, program
        self.count = 0

    def run(self, ranks, nodes, sizes, beside=None):
        self.count += 1
        name = f"p{self.count}"
        flags = f"--ntasks={ranks} --nodes={nodes} --ntasks-per-node={ranks // nodes}"
        container = {
            "name": "main",
            "image": MPI,
            "command": [*script_of(self.program), *sizes],
            "resources": {"requests": {"cpu": "1", "memory": "64Mi"}},
            "volumeMounts": [{"name": "home", "mountPath": "/home/alice"}],
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "annotations": {"slurm-job.hpk.io/flags": flags, "slurm-job.hpk.io/mpi-flags": ""},
            },
            "spec": {
                "restartPolicy": "Never",
                "containers": [container],
                "volumes": [{"name": "home", "hostPath": {"path": "/home/alice"}}],
            },
        }
        self.site.kubectl("apply", "-f", "-", text=json.dumps(pod))
        begun, told = None, None
        # While messages are measured nobody asks: clients of the API would take the ranks' CPUs.
        if not sizes:
            self.site.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")
            while not self.site.kubectl("logs", name):
                time.sleep(0.2)
            begun = self.srun_started(self.site.kubectl("get", "pod", name, "-o", "jsonpath={.metadata.uid}"))
            told = beside() if beside else None
        self.site.kubectl("wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
        lines = self.site.kubectl("logs", name).split("\n")
        self.site.kubectl("delete", "pod", name)
        return lines, begun, told

    def srun_started(self, uid):
        """To a hundredth of a second, as the kernel remembers it."""
        script = f"""
            for p in $(pgrep -x srun); do
                tr '\\0' ' ' </proc/$p/cmdline | grep -q ' rank .*{uid}' || continue
                started=$(sed 's/.*) //' /proc/$p/stat | cut -d' ' -f20)
                up=$(cut -d' ' -f1 /proc/uptime) now=$(date +%s.%N)
                echo "$started $up $now"; break
            done"""
        ticks, up, now = map(float, self.site.run("c1", "sh", "-c", script).split())
        return now - (up - ticks / 100)


def private_memory(site):
    """KiB on c2 that only HPK's processes beside the ranks have, and how many ranks there are."""
    script = r"""
        for p in $(pgrep -x hpk-netns) $(pgrep -x hpk-keeper) $(pgrep -x hpk-pause); do
            awk '/^Private/ { n += $2 } END { print n }' /proc/$p/smaps_rollup
        done 2>/dev/null | awk '{ n += $1 } END { print n + 0, NR }'"""
    return tuple(map(int, site.run("c2", "sh", "-c", script).split()))


def show(values, form):
    return f"{form % statistics.median(values)} ({form % min(values)}–{form % max(values)})"


def ratios(ours, others):
    return "%.2f" % statistics.median(a / b for a, b in zip(ours, others, strict=True))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sx")
    parser.add_argument("source")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    site = Site(args.sx)
    program = "/home/alice/ping-pong"
    site.alice(
        "sh", "-c", f"cat >{program}.c && mpicc -O2 -o {program} {program}.c", text=Path(args.source).read_text()
    )
    site.alice("kubectl", "create", "namespace", NAMESPACE)
    slurm = None
    try:
        while "default" not in site.kubectl("get", "serviceaccounts", "-o", "name"):
            time.sleep(0.2)
        pod = Pod(site, program)
        pod.run(2, 1, [])  # the image is there from now on
        image = site.alice("sh", "-c", "echo $(dirname ~/.hpk/images/*/rootfs/usr/local/bin/nas-ep)/../../..").split()[
            -1
        ]
        slurm = Slurm(site, program, image)
        report(site, args.rounds, {
            "plain srun": lambda *run: slurm.run(False, *run),
            "srun apptainer exec": lambda *run: slurm.run(True, *run),
            "pod": pod.run,
        })  # fmt: skip
    finally:
        if slurm:
            slurm.end()
        site.alice("kubectl", "delete", "namespace", NAMESPACE, "--wait=false")


def report(site, rounds, ways):
    latency = {place: {way: ([], []) for way in WAYS} for place in PLACES}
    start = {way: [] for way in WAYS}
    memory = []
    for number in range(rounds):
        order = WAYS[number % 3 :] + WAYS[: number % 3]
        for place, (ranks, nodes) in PLACES.items():
            for way in order:
                lines, _, _ = ways[way](ranks, nodes, SIZES)
                for size, line in enumerate(lines[1:3]):
                    latency[place][way][size].append(float(line.split()[1]))
        for way in order:
            beside = (lambda: private_memory(site)) if way == "pod" else None
            lines, begun, told = ways[way](16, 2, [], beside)
            start[way].append(float(lines[0]) - begun)
            if told:
                memory.append(told)
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
    load = Path("/proc/loadavg").read_text().split()[0]
    out = ["## MPI steps", ""]
    out.append(
        f"{rounds} rounds in turns; messages: what a tenth of a run's rounds is faster than. Load at the end: {load}."
    )
    out += [
        "",
        "| what | plain srun | srun apptainer exec | pod | pod / plain | pod / apptainer |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for place in PLACES:
        for size, (name, form) in enumerate([("8 B", "%.2f µs"), ("4 MiB", "%.0f µs")]):
            rows.append((f"{name} {place}", form, {way: latency[place][way][size] for way in WAYS}))
    rows.append(("16 ranks on 2 nodes, srun to the last MPI_Init", "%.2f s", start))
    for name, form, values in rows:
        plain, boxed, ours = (values[way] for way in WAYS)
        cells = [show(values[way], form) for way in WAYS] + [ratios(ours, plain), ratios(ours, boxed)]
        out.append(f"| {name} | {' | '.join(cells)} |")
    kib = [kib for kib, _ in memory]
    out.append(
        f"\nPrivate memory of HPK beside 8 ranks on the second node: {show(kib, '%.0f KiB')}, in {memory[-1][1]} processes."
    )
    sys.stdout.write("\n".join(out) + "\n")


main()
