"""Calls of a process in the node's network, with and without connections that ask first (ADR 25).

    measure.py SX [--rounds N]

In each round both ways run once, in turns, on the same node with the same program. Prints a Markdown section: of what a
tenth of the calls of a round is faster than, medians over the rounds with the range in brackets, and the median of the
rounds' own ratios.
"""

import argparse
import json
import os
import statistics
import subprocess

NAME = f"bench-crossing-{os.getpid()}"
# Prints a name and microseconds a call, a line each.
PROGRAM = """
import socket, threading, time

server = socket.create_server(("127.0.0.1", 0), backlog=4096)
at = server.getsockname()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
there = udp.getsockname()

def each(name, count, call):
    # What a tenth of the hundreds is faster than: the machine's other work comes and goes.
    means = []
    for _ in range(count // 100):
        began = time.perf_counter()
        for _ in range(100):
            call()
        means.append((time.perf_counter() - began) * 1e4)
    print(name, sorted(means)[len(means) // 10], flush=True)

def connect():
    client = socket.create_connection(at)
    server.accept()[0].close()
    client.close()

datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

def sendto():
    datagram.sendto(b"12345678", there)
    udp.recv(64)

client = socket.create_connection(at)
other = server.accept()[0]

def pingpong():
    client.send(b"12345678")
    other.recv(64)
    other.send(b"12345678")
    client.recv(64)

def sendmsg():
    client.sendmsg([b"12345678"])
    other.recvmsg(64)

connect()
each("connect to the node, accept, close", 5000, connect)
each("sendto with an address, recv", 20000, sendto)
each("send, recv, send, recv", 50000, pingpong)
each("sendmsg, recvmsg", 50000, sendmsg)
"""


class Site:
    def __init__(self, sx):
        self.sx = sx

    def run(self, node, *command, text=None):
        words = [self.sx, node, "-u", "alice", *command]
        done = subprocess.run(words, input=text, text=True, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
        return done.stdout


def figures(text):
    lines = (line.rsplit(" ", 1) for line in text.splitlines())
    return {name: float(value) for name, value in lines}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sx")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    site = Site(args.sx)
    flags = {"slurm-job.hpk.io/flags": "--nodelist=c2"}
    main = {"name": "main", "image": "login:5000/toolbox:1", "command": ["sleep", "infinity"]}
    spec = {"hostNetwork": True, "terminationGracePeriodSeconds": 0, "containers": [main]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "annotations": flags}, "spec": spec}
    site.run("login", "kubectl", "apply", "-f", "-", text=json.dumps(pod))
    try:
        site.run("login", "kubectl", "wait", f"pod/{NAME}", "--for=condition=Ready", "--timeout=120s")
        rounds = []
        for _ in range(args.rounds):
            plain = figures(site.run("c2", "python3", "-c", PROGRAM))
            asks = figures(site.run("login", "kubectl", "exec", NAME, "--", "python3", "-c", PROGRAM))
            rounds.append((plain, asks))
    finally:
        site.run("login", "kubectl", "delete", "pod", NAME, "--wait=false")
    print("## Calls in the node's network, with and without connections that ask first\n")
    print(f"{args.rounds} rounds, microseconds a call (python).\n")
    print("| call | without | in a hostNetwork pod | ratio |\n|---|---|---|---|")
    for name in rounds[0][0]:
        cells = [shown([one[way][name] for one in rounds]) for way in (0, 1)]
        ratio = statistics.median(one[1][name] / one[0][name] for one in rounds)
        print(f"| {name} | {cells[0]} | {cells[1]} | {ratio:.2f} |")


def shown(values):
    return f"{statistics.median(values):.2f} [{min(values):.2f} to {max(values):.2f}]"


main()
