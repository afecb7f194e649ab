#!/usr/bin/env python3
"""Container output into CRI logs: our pump beside conmon, whole processes, taking turns.

measure.py PUMP LINES FLOOR: the example programs of hpk-log, built for release. FLOOR only reads the pipe and writes what it
read: less than that no log can cost where its program reads and writes.
Input goes through pipes, logs to /dev/shm. Ours rotates at 10 MiB and keeps all files, so that every line can be
counted; conmon does not rotate, because its size limit drops lines.
"""

import ctypes
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

PUMP, LINES, FLOOR = sys.argv[1:4]
RUNS = int(os.environ.get("RUNS", "3"))
CASES = [(100, 256), (16384, 512), (2, 16)]
PR_SET_CHILD_SUBREAPER = 36


def count(folder, pattern):
    """Lines of all log files that are whole records."""
    lines = 0
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as log:
            while block := log.read(64 << 20):
                lines += len(pattern.findall(block + log.readline()))
    return lines


RECORD = re.compile(rb"^\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d) stdout F .*$", re.M)


def ours(folder, length, mib):
    logs = os.path.join(folder, "logs")
    out = subprocess.run(
        [PUMP, logs, str(10 << 20), "1000000", LINES, str(length), str(mib), folder + "/cpu"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    seconds, cpu, read = out.split()
    return float(seconds), float(cpu), int(read), count(logs, RECORD)


def floor(folder, length, mib):
    out = subprocess.run(
        [FLOOR, os.path.join(folder, "logs"), str(10 << 20), LINES, str(length), str(mib), folder + "/cpu"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    seconds, cpu, read = out.split()
    return float(seconds), float(cpu), int(read), None


def producer(folder):
    """CPU seconds of the program that wrote the lines."""
    with open(folder + "/cpu") as file:
        return float(file.read())


def conmon(folder, length, mib):
    """conmon with a runtime that only starts the writer; it reaps and reports as always."""
    os.mkdir(folder + "/logs")
    runtime = folder + "/runtime"
    with open(runtime, "w") as script:
        script.write(f"""#!/bin/sh
for a; do case "$prev" in --pid-file) pidfile=$a;; esac; prev=$a; done
case "$*" in *create*) {LINES} {length} {mib} {folder}/cpu </dev/null & echo -n $! >"$pidfile";; esac
""")
    os.chmod(runtime, 0o755)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvp(
            "conmon",
            [
                "conmon",
                "--cid",
                "x",
                "--cuuid",
                "x",
                "-r",
                runtime,
                "-b",
                folder,
                "-p",
                folder + "/pid",
                "-l",
                "k8s-file:" + folder + "/logs/0.log",
                "--exit-dir",
                folder,
                "--full-attach",
            ],
        )
    cpu = 0.0
    while True:
        # The command itself forks; what it leaves behind comes to us, the subreaper.
        try:
            _, _, usage = os.wait4(-1, 0)
        except ChildProcessError:
            break
        cpu += usage.ru_utime + usage.ru_stime
    seconds = time.monotonic() - began
    with open(folder + "/cpu") as writer:
        cpu -= float(writer.read())
    block = (256 << 10) // length * length
    return seconds, cpu, (mib << 20) // block * block, count(folder + "/logs", RECORD)


def main():
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    print("## Logs\n")
    print(
        "Input MiB/s and CPU seconds per GiB of the program that writes the log, without the container's own; medians of "
        f"{RUNS} runs that take turns. Ours rotates every 10 MiB.\n"
    )
    print(
        "| lines of | hpk-log | conmon | ratio | read and write alone | CPU hpk-log | CPU conmon | ratio | read and write alone | "
        "the container's own | lines kept by hpk-log |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for length, mib in CASES:
        results = {ours: [], conmon: [], floor: []}
        own, kept = [], 1.0
        for _ in range(RUNS):
            for run, into in results.items():
                folder = tempfile.mkdtemp(dir="/dev/shm", prefix="hpk-bench-logs.")
                try:
                    seconds, cpu, read, lines = run(folder, length, mib)
                    if run is ours:
                        own.append(producer(folder) / (read / (1 << 30)))
                        kept = min(kept, lines * length / read)
                finally:
                    shutil.rmtree(folder)
                into.append((read / seconds / (1 << 20), cpu / (read / (1 << 30))))
        (rate, cpu), (peer_rate, peer_cpu), (floor_rate, floor_cpu) = (
            [statistics.median(r[i] for r in into) for i in (0, 1)] for into in results.values()
        )
        print(
            f"| {length} B | {rate:.0f} | {peer_rate:.0f} | {rate / peer_rate:.1f}× | {floor_rate:.0f} | {cpu:.2f} | {peer_cpu:.2f} | "
            f"{cpu / peer_cpu:.2f} | {floor_cpu:.2f} | {statistics.median(own):.2f} | {kept:.0%} |",
            flush=True,
        )


main()
