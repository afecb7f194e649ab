#!/usr/bin/env python3
"""Jobs of so many trivial pods each, as alice on the site's login node; prints Markdown."""

import json
import os
import re
import subprocess
import sys
import threading
import time

PATIENCE = 900


def call(*command, text=None):
    return subprocess.run(command, check=True, capture_output=True, text=True, input=text).stdout


def kubelet():
    return int(call('pgrep', '-u', str(os.getuid()), '-x', 'hpk-kubelet').split()[0])


def cpu(pid):
    with open(f'/proc/{pid}/stat') as f:
        fields = f.read().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def resident(pid):
    with open(f'/proc/{pid}/status') as f:
        return int(re.search(r'^VmRSS:\s+(\d+)', f.read(), re.M)[1]) / 1024


def requests():
    """Of this user to slurmctld so far."""
    text = call('sdiag')
    own = re.search(rf'^\s+{os.environ["USER"]}\s.*count:(\d+)', text, re.M)
    return int(own[1]) if own else 0


class Peak(threading.Thread):
    """The most memory that a process has had, looked at ten times a second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.most, self.over = pid, 0, threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.1):
            self.most = max(self.most, resident(self.pid))


def job(name, count):
    container = {
        'name': 'main',
        'image': 'login:5000/busybox:1',
        'command': ['true'],
        'resources': {'requests': {'cpu': '100m', 'memory': '16Mi'}},
    }
    return {
        'apiVersion': 'batch/v1',
        'kind': 'Job',
        'metadata': {'name': name},
        'spec': {
            'completions': count,
            'parallelism': count,
            'backoffLimit': 0,
            'template': {'spec': {'restartPolicy': 'Never', 'containers': [container]}},
        },
    }


def measure(count):
    name, pid = f'many-{count}', kubelet()
    before, asked = cpu(pid), requests()
    peak = Peak(pid)
    begun = time.time()
    call('kubectl', 'create', '-f', '-', text=json.dumps(job(name, count)))
    ended = None
    while ended is None:
        if time.time() - begun > PATIENCE:
            status = json.loads(call('kubectl', 'get', 'job', name, '-o', 'json'))['status']
            sys.exit(f'{count} pods did not end in {PATIENCE} s: {status}')
        wait = subprocess.run(
            ['kubectl', 'wait', '--for=condition=Complete', f'job/{name}', '--timeout=30s'], capture_output=True
        )
        ended = time.time() if wait.returncode == 0 else None
    peak.over.set()
    took = ended - begun
    used, sent = cpu(pid) - before, requests() - asked
    status = json.loads(call('kubectl', 'get', 'job', name, '-o', 'json'))['status']
    ok = status.get('succeeded', 0)
    print(
        f'| {count} | {ok} | {took:.0f} | {count / took:.1f} | {peak.most:.0f} | {1000 * used / count:.0f} '
        f'| {sent / count:.2f} | {sent / took:.2f} |',
        flush=True,
    )
    call('kubectl', 'delete', 'job', name, '--wait=true', '--timeout=600s')


print('### Many pods\n')
print(
    '| pods | Succeeded | s | pods/s | kubelet, MiB at most | kubelet, CPU ms a pod | requests to slurmctld a pod | a second |'
)
print('|---|---|---|---|---|---|---|---|')
for text in sys.argv[1:]:
    measure(int(text))
