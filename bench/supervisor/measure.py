#!/usr/bin/env python3
"""The supervisor as a whole process: memory and wake-ups at rest beside peers, orphans beside tini, restarts, probes.

  measure.py HPK-PAUSE BUSYBOX LAUNCH [PART...]

LAUNCH is the benchmark program of hpk-sys.
Needs root or unprivileged user namespaces; prints Markdown.
"""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
from process import UNSHARE, memory, start_supervisor, switches

ORPHANS = int(os.environ.get("HPK_BENCH_ORPHANS", "16000"))
# What is measured ends with its measurement, also with one that fails.
ALONE = ['setpriv', '--pdeathsig', 'KILL', *UNSHARE]


def container(name, script, **more):
    return dict(
        name=name,
        image='b',
        image_ref=dict(folder='b', id='b'),
        argv=['/bin/sh', '-c', script],
        env=[['PATH', '/bin']],
        **more,
    )


def pod(containers, **more):
    return dict(
        version=1,
        pod=dict(namespace='d', name='p', uid='u'),
        hostname='p',
        restart_policy='Always',
        termination_grace_period_seconds=1,
        network=dict(mode='overlay'),
        containers=containers,
        **more,
    )


def make_rootfs(at, date=False):
    os.makedirs(f'{at}/bin')
    if date:
        # Busybox's knows no nanoseconds.
        tool = shutil.which('date')
        libraries = re.findall(
            r'(/\S+) \(0x', subprocess.run(['ldd', tool], check=True, capture_output=True, text=True).stdout
        )
        for file in [tool] + libraries:
            to = f'{at}/bin/date' if file == tool else at + file
            os.makedirs(os.path.dirname(to), exist_ok=True)
            shutil.copy(file, to)
    subprocess.run(['cp', BUSYBOX, f'{at}/bin/busybox'], check=True)
    for tool in ('sh', 'sleep', 'usleep', 'true', 'echo', 'httpd', 'mkdir'):
        os.symlink('busybox', f'{at}/bin/{tool}')


class Pod:
    def __init__(self, plan, date=False):
        self.dir = tempfile.TemporaryDirectory(prefix='hpk-bench-')
        at = self.dir.name
        make_rootfs(f'{at}/images/b/rootfs', date)
        self.process = start_supervisor(at, ALONE, PAUSE, plan)
        self.pid = init_of(self.process.pid)

    def state(self):
        try:
            with open(f'{self.dir.name}/pod/status.json') as f:
                return json.load(f)
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def until(self, holds):
        for _ in range(3000):
            state = self.state()
            if state and holds(state):
                return state
            time.sleep(0.02)
        sys.exit(f'the pod did not come to it: {state}')

    def end(self):
        self.process.kill()
        self.process.wait()
        self.dir.cleanup()


def init_of(unshare):
    for _ in range(500):
        with open(f'/proc/{unshare}/task/{unshare}/children') as f:
            children = f.read().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    sys.exit('no process in the new namespace')


def at_rest(groups):
    """RSS and private KiB, and wake-ups a minute, of each group of processes together."""
    time.sleep(3)
    before = [sum(map(switches, pids)) for pids in groups]
    time.sleep(20)
    rows = []
    for pids, woken in zip(groups, before):
        woken = sum(map(switches, pids)) - woken
        sizes = [memory(pid, 'Private_Dirty') for pid in pids]
        rows.append((sum(s[0] for s in sizes), sum(s[1] for s in sizes), woken * 3))
    return rows


# Each starts that many `sleep 100000` with their output in logs, but for tini, which has none.
PEERS = dict(
    tini=(['tini'], 'for i in $(seq $1); do tini -s -- sleep 100000 & done; wait'),
    s6=(
        ['s6-svscan', 's6-supervise', 's6-log'],
        '''
for i in $(seq $1); do
  mkdir -p scan/$i/log
  printf '#!/bin/sh\\nexec sleep 100000\\n' >scan/$i/run
  printf '#!/bin/sh\\nexec s6-log T n5 s10485760 %s\\n' "$PWD/logs$i" >scan/$i/log/run
  chmod +x scan/$i/run scan/$i/log/run
done
exec s6-svscan scan''',
    ),
    conmon=(
        ['conmon'],
        '''
for i in $(seq $1); do
  mkdir -p $i
  printf '#!/bin/sh\\nfor a; do case "$prev" in --pid-file) pidfile=$a;; esac; prev=$a; done\\ncase "$*" in *create*) sleep 100000 & echo -n $! >"$pidfile";; esac\\n' >$i/runtime
  chmod +x $i/runtime
  conmon --cid x --cuuid x -r "$PWD/$i/runtime" -b "$PWD/$i" -p "$PWD/$i/pid" -l "k8s-file:$PWD/$i/log" --exit-dir "$PWD/$i" --full-attach
done
sleep 100000''',
    ),
)


def descendants(pid):
    found = []
    for task in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{task}/children') as f:
            for child in map(int, f.read().split()):
                found += [child] + descendants(child)
    return found


def name_of(pid):
    with open(f'/proc/{pid}/comm') as f:
        return f.read().strip()


class Peer:
    """Processes of another supervisor with that many children."""

    def __init__(self, peer, count):
        names, script = PEERS[peer]
        self.dir = tempfile.TemporaryDirectory(prefix='hpk-bench-')
        self.process = subprocess.Popen(
            ALONE + ['sh', '-c', script, 'sh', str(count)], cwd=self.dir.name, stderr=subprocess.DEVNULL
        )
        time.sleep(2)
        init = init_of(self.process.pid)
        self.pids = [pid for pid in [init] + descendants(init) if name_of(pid) in names]
        if len([pid for pid in descendants(init) if name_of(pid) == 'sleep']) < count:
            sys.exit(f'{peer} did not start its {count} processes')

    def end(self):
        self.process.kill()
        self.process.wait()
        self.dir.cleanup()


def rest():
    """Everybody rests at the same time: nobody of them does anything."""
    groups = {}
    for count in (1, 10):
        p = Pod(pod([container(f'c{i}', 'exec sleep 100000') for i in range(count)]))
        p.until(lambda s: all('running' in c['state'] for c in s['containers']))
        groups[f'**hpk-pause**, {count}'] = (p, [p.pid])
        for peer, (names, _) in PEERS.items():
            if all(map(shutil.which, names)):
                other = Peer(peer, count)
                groups[f'{peer}, {count}'] = (other, other.pids)
    print('| at rest | RSS KiB | private dirty KiB | wake-ups a minute |\n|---|---|---|---|')
    for name, row in zip(groups, at_rest([pids for _, pids in groups.values()])):
        print('| {} | {} | {} | {} |'.format(name, *row))
    for one, _ in groups.values():
        one.end()


MAKE = f'''
import os, sys
children = []
for _ in range({ORPHANS}):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    children.append(pid)
print(*children[::97], flush=True)
sys.stdin.read()
'''


def drain(pid):
    """Seconds and CPU seconds in which PID 1 reaps its orphans, all of them zombies already."""
    maker = subprocess.Popen(
        ['nsenter', '-t', str(pid), '-U', '--preserve-credentials', '-p', sys.executable, '-c', MAKE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    maker.stdout.readline()
    os.kill(pid, signal.SIGSTOP)
    maker.stdin.close()
    maker.wait()
    time.sleep(0.5)
    cpu = lambda: (
        sum(map(int, open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[11:13])) / os.sysconf('SC_CLK_TCK')
    )
    count = lambda: len(open(f'/proc/{pid}/task/{pid}/children').read().split())
    before, zombies = cpu(), count()
    if zombies < ORPHANS:
        sys.exit(f'only {zombies} zombies')
    # The kernel keeps children in order of their coming: the last one goes last.
    last = int(open(f'/proc/{pid}/task/{pid}/children').read().split()[-1])
    begun = time.monotonic()
    os.kill(pid, signal.SIGCONT)
    while os.path.exists(f'/proc/{last}'):
        time.sleep(0.001)
    while count() > 10:
        time.sleep(0.001)
    return time.monotonic() - begun, cpu() - before


def orphans():
    ours, tinis = [], []
    p = Pod(pod([container('c', 'exec sleep 100000')]))
    p.until(lambda s: 'running' in s['containers'][0]['state'])
    tini = subprocess.Popen(ALONE + ['tini', '--', 'sleep', '100000'])
    time.sleep(0.5)
    for _ in range(5):
        ours.append(drain(p.pid))
        tinis.append(drain(init_of(tini.pid)))
    p.end()
    tini.kill()
    tini.wait()
    median = lambda runs, i: statistics.median(r[i] for r in runs)
    return [(median(r, 0), median(r, 1)) for r in (ours, tinis)]


def watch(p):
    """States of a pod, one after each change."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f'{p.dir.name}/run/supervisor.sock')
        s.sendall(b'{"hello":{"version":1}}\n{"status":{"watch":true}}\n')
        lines = s.makefile()
        next(lines)
        for line in lines:
            yield json.loads(line)


def millis(text):
    """Of a time stamp, within its hour."""
    return 60_000 * int(text[14:16]) + 1000 * float(text[17:-1])


def restarts():
    """Milliseconds from an exit, as it was reaped, to the execution of the next command, where no back-off is due."""
    p = Pod(pod([container('c', 'usleep 20000; exit 1')], settings=dict(backoff_initial_ms=0, backoff_max_ms=0)))
    p.until(lambda s: s['containers'][0]['restart_count'] > 0)
    times = {}
    for state in watch(p):
        c = state['containers'][0]
        if 'running' in c['state'] and c.get('last_termination'):
            times[c['restart_count']] = millis(c['state']['running']['started_at']) - millis(
                c['last_termination']['finished_at']
            )
            if len(times) > 200:
                break
    p.end()
    return statistics.median(times.values()), min(times.values())


def launches(rootfs):
    """Milliseconds from a request to the execution of a container's command, by the system calls alone."""
    with tempfile.TemporaryDirectory(prefix='hpk-bench-') as scratch:
        lines = subprocess.run(
            ALONE + [LAUNCH, 'restarted', rootfs, scratch], check=True, capture_output=True, text=True
        ).stdout
    values = dict(line.split() for line in lines.splitlines())
    return float(values['restarted']) / 1000, float(values['restarted-best']) / 1000


def further(runs=10):
    """Milliseconds from one container's first instruction to the next one's, in pods of ten, as their programs say it."""
    times = []
    for _ in range(runs):
        p = Pod(pod([container(f'c{i}', '/bin/date +%s%N; exec sleep 100000') for i in range(10)]), date=True)
        logs = [f'{p.dir.name}/pod/logs/c{i}/0.log' for i in range(10)]
        p.until(lambda s, logs=logs: all(os.path.exists(log) and os.path.getsize(log) for log in logs))
        starts = [int(open(log).read().split()[3]) for log in logs]
        times.append((max(starts) - min(starts)) / 9e6)
        p.end()
    return statistics.median(times), min(times), max(times)


HANDLERS = dict(
    exec=dict(exec=dict(command=['/bin/true'])),
    tcpSocket=dict(tcp_socket=dict(port=8080)),
    httpGet=dict(http_get=dict(scheme='http', port=8080, path='/')),
)
PROBED = 9


def cpu(pid):
    """Of a process and of its children that were reaped, seconds."""
    with open(f'/proc/{pid}/schedstat') as f:
        own = (
            sum(int(open(f'/proc/{pid}/task/{t}/schedstat').read().split()[0]) for t in os.listdir(f'/proc/{pid}/task'))
            / 1e9
        )
    with open(f'/proc/{pid}/stat') as f:
        ended = sum(map(int, f.read().rsplit(')', 1)[1].split()[13:15])) / os.sysconf('SC_CLK_TCK')
    return own, ended


def probes(handler, seconds=10):
    """CPU milliseconds a minute, own and of the probes' processes, with PROBED containers that have two probes each second."""
    probe = handler and dict(
        handler=HANDLERS[handler], timeout_seconds=5, period_seconds=1, success_threshold=1, failure_threshold=1000
    )
    more = probe and dict(probes=dict(liveness=probe, readiness=probe)) or {}
    served = container('server', 'mkdir -p /www && echo ok >/www/index.html && exec httpd -f -p 8080 -h /www')
    p = Pod(pod([served] + [container(f'c{i}', 'exec sleep 100000', **more) for i in range(PROBED)]))
    p.until(lambda s: all('running' in c['state'] and c['ready'] for c in s['containers']))
    time.sleep(2)
    before = cpu(p.pid)
    time.sleep(seconds)
    after = cpu(p.pid)
    p.end()
    return [(b - a) * 60 / seconds * 1000 for a, b in zip(before, after)]


def exec_probe():
    """CPU and wall milliseconds of one exec of true in a container, by the control socket."""
    p = Pod(pod([container('c', 'exec sleep 100000')]))
    p.until(lambda s: 'running' in s['containers'][0]['state'])
    runs = []
    for _ in range(300):
        begun = time.perf_counter()
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(f'{p.dir.name}/run/supervisor.sock')
            s.sendall(
                b'{"hello":{"version":1}}\n{"exec":{"container":"c","command":["true"],"stdout":true,"stderr":true}}\n'
            )
            while s.recv(65536):
                pass
        runs.append(time.perf_counter() - begun)
    p.end()
    return statistics.median(runs) * 1000


def drains():
    print(f'| {ORPHANS} zombies drained | ms | CPU ms |\n|---|---|---|')
    rows = orphans()
    for name, (wall, cpu) in zip(('hpk-pause', 'tini'), rows):
        print(f'| {name} | {wall * 1000:.0f} | {cpu * 1000:.0f} |')
    print(f'| ratio | {rows[0][0] / rows[1][0]:.2f} | {rows[0][1] / max(rows[1][1], 0.01):.2f} |')


def ten():
    print(
        'Each further container of a pod of ten: {:.2f} ms ({:.2f}–{:.2f}, median and range of 10 pods).'.format(
            *further()
        )
    )


def probed():
    print(
        '| a thousand probes a minute, CPU ms a minute | hpk-pause | its reaped children | own share of one CPU |\n|---|---|---|---|'
    )
    own, theirs = probes(None)
    print(f'| none | {own:.1f} | {theirs:.0f} | {own / 600:.3f} % |')
    for handler in HANDLERS:
        # PROBED containers make so many a minute.
        own, theirs = (value * 1000 / (PROBED * 120) for value in probes(handler))
        print(f'| {handler} | {own:.1f} | {theirs:.0f} | {own / 600:.3f} % |')


def execs():
    print(f'exec of `true` by the control socket, to the end of the stream: {exec_probe():.2f} ms (median).')


def share():
    """A restart without what its launch takes."""
    with tempfile.TemporaryDirectory(prefix='hpk-bench-') as at:
        make_rootfs(f'{at}/rootfs')
        rows = [(restarts(), launches(f'{at}/rootfs')) for _ in range(3)]
    rest, launch = (statistics.median(r[i][0] for r in rows) for i in (0, 1))
    best, launch_best = (min(r[i][1] for r in rows) for i in (0, 1))
    print('| a restart, no back-off due, ms | median | best |\n|---|---|---|')
    print(f'| exit reaped → command executed | {rest:.2f} | {best:.2f} |')
    print(f'| of it the launch (system calls alone) | {launch:.2f} | {launch_best:.2f} |')
    print(f'| our own share | {rest - launch:.2f} | {best - launch_best:.2f} |')


PARTS = dict(rest=rest, orphans=drains, further=ten, restart=share, probes=probed, exec=execs)
PAUSE, BUSYBOX, LAUNCH = map(os.path.abspath, sys.argv[1:4])
print('## The supervisor as a process')
for part in sys.argv[4:] or PARTS:
    print(flush=True)
    PARTS[part]()
