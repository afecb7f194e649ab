#!/usr/bin/env python3
"""The control socket: exec of `true` beside nsenter, streams both ways, memory of sessions.

  measure.py HPK-PAUSE BUSYBOX

Needs root or unprivileged user namespaces; prints Markdown.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
from process import UNSHARE, start_supervisor

PAUSE, BUSYBOX = sys.argv[1:3]
EXECS = int(os.environ.get('EXECS', '300'))
STREAM = 2 << 30
CHUNK = 64 << 10


def rootfs(at):
    os.makedirs(f'{at}/bin')
    os.makedirs(f'{at}/proc')
    subprocess.run(['cp', BUSYBOX, f'{at}/bin/busybox'], check=True)
    for tool in ('sh', 'sleep', 'true', 'cat', 'dd'):
        os.symlink('busybox', f'{at}/bin/{tool}')


class Pod:
    def __init__(self):
        self.dir = tempfile.TemporaryDirectory(prefix='hpk-bench-')
        at = self.dir.name
        rootfs(f'{at}/images/b/rootfs')
        container = dict(
            name='c',
            image='b',
            image_ref=dict(folder='b', id='b'),
            argv=['/bin/sleep', '100000'],
            env=[['PATH', '/bin']],
        )
        plan = dict(
            version=1,
            pod=dict(namespace='d', name='p', uid='u'),
            hostname='p',
            restart_policy='Always',
            termination_grace_period_seconds=1,
            network=dict(mode='overlay'),
            containers=[container],
        )
        self.process = start_supervisor(at, UNSHARE, PAUSE, plan)
        for _ in range(500):
            try:
                if 'running' in self.ask('status', dict(watch=False))[1]['ok']['status']['containers'][0]['state']:
                    break
            except OSError:
                pass
            time.sleep(0.02)
        else:
            sys.exit('the pod did not start')
        with open(f'/proc/{self.process.pid}/task/{self.process.pid}/children') as f:
            self.pid = int(f.read().split()[0])

    def ask(self, name, content):
        """Connection and answer."""
        s = socket.socket(socket.AF_UNIX)
        s.connect(f'{self.dir.name}/run/supervisor.sock')
        request = json.dumps({name: content} if content is not None else name)
        s.sendall(b'{"hello":{"version":1}}\n' + request.encode() + b'\n')
        line = b''
        while not line.endswith(b'\n'):
            byte = s.recv(1)
            if not byte:
                raise OSError('closed')
            line += byte
        return s, json.loads(line)

    def exec(self, *command, stdin=False):
        s, answer = self.ask('exec', dict(container='c', command=command, stdin=stdin, stdout=True, stderr=True))
        assert answer == {'ok': 'streaming'}, answer
        return s

    def end(self):
        self.process.kill()
        self.process.wait()
        self.dir.cleanup()


def receive(s, into):
    got = s.recv_into(into)
    if not got:
        sys.exit('the session broke off')
    return got


def to_end(s):
    """Bytes of output, and the last frame's content."""
    total, buffer = 0, bytearray(5 + (1 << 20))
    view, have = memoryview(buffer), 0
    while True:
        while have < 5:
            have += receive(s, view[have:])
        channel, length = buffer[0], int.from_bytes(buffer[1:5], 'big')
        while have < 5 + length:
            have += receive(s, view[have:])
        if channel == 3:
            return total, bytes(buffer[5 : 5 + length])
        total += length
        buffer[: have - 5 - length] = buffer[5 + length : have]
        have -= 5 + length


def median_ms(run):
    times = []
    for _ in range(EXECS):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times), min(times)


def cpu(pid):
    with open(f'/proc/{pid}/stat') as f:
        fields = f.read().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def main():
    pod = Pod()
    ours, ours_best = median_ms(lambda: to_end(pod.exec('/bin/true')))
    peer, peer_best = median_ms(
        lambda: subprocess.run(
            ['nsenter', '-t', str(pod.pid), '-U', '--preserve-credentials', '-m', '-p', BUSYBOX, 'true'], check=True
        )
    )
    print('## Control socket\n')
    print(
        f'exec of `true`, request to exit status, {EXECS} in a row: over the socket, and nsenter as a process. (crun exec: see launch.)\n'
    )
    print('| ms | socket | nsenter | ratio |')
    print('|---|---|---|---|')
    print(f'| median | {ours:.2f} | {peer:.2f} | {ours / peer:.2f} |')
    print(f'| best | {ours_best:.2f} | {peer_best:.2f} | {ours_best / peer_best:.2f} |')

    before, began = cpu(pod.pid), time.perf_counter()
    total, end = to_end(pod.exec('/bin/dd', 'if=/dev/zero', 'bs=256k', f'count={STREAM >> 18}'))
    outward, out_cpu = total / (time.perf_counter() - began) / 1e6, cpu(pod.pid) - before
    assert total >= STREAM, (total, end)
    before, began = cpu(pod.pid), time.perf_counter()
    s = pod.exec('/bin/sh', '-c', 'cat >/dev/null', stdin=True)
    frame = bytes([0]) + CHUNK.to_bytes(4, 'big') + bytes(CHUNK)
    for _ in range(STREAM // CHUNK):
        s.sendall(frame)
    s.sendall(bytes([255, 0, 0, 0, 1, 0]))
    to_end(s)
    inward, in_cpu = STREAM / (time.perf_counter() - began) / 1e6, cpu(pod.pid) - before
    print(
        f'\nStreaming {STREAM >> 30} GiB through exec: out of the container {outward:.0f} MB/s '
        f'({out_cpu / (STREAM >> 30):.2f} CPU s per GiB of hpk-pause), into it {inward:.0f} MB/s ({in_cpu / (STREAM >> 30):.2f}).'
    )

    def private():
        with open(f'/proc/{pod.pid}/smaps_rollup') as f:
            return sum(map(int, re.findall(r'^Private_\w+:\s+(\d+)', f.read(), re.M)))

    before = private()
    sessions = [pod.exec('/bin/sleep', '1000') for _ in range(100)]
    time.sleep(1)
    print(f'An open exec session costs {(private() - before) / len(sessions):.0f} KiB of private memory (100 open).')
    for s in sessions:
        s.close()
    pod.end()


main()
