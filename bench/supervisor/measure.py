#!/usr/bin/env python3
"""The supervisor as a whole process: memory and wake-ups at rest, orphans beside tini, restarts, exec probes.

  measure.py HPK-PAUSE BUSYBOX

Needs root or unprivileged user namespaces; prints Markdown.
"""
import json, os, re, signal, statistics, subprocess, sys, tempfile, time

ORPHANS = int(os.environ.get("HPK_BENCH_ORPHANS", "16000"))
UNSHARE = ['unshare', '--user', '--map-root-user', '--net', '--pid', '--fork', '--mount', '--ipc', '--uts',
           '--mount-proc', '--kill-child', '--']


def container(name, script, **more):
    return dict(name=name, image='b', image_ref=dict(folder='b', id='b'), argv=['/bin/sh', '-c', script],
                env=[['PATH', '/bin']], **more)


def pod(containers, **more):
    return dict(version=1, pod=dict(namespace='d', name='p', uid='u'), hostname='p', restart_policy='Always',
                termination_grace_period_seconds=1, network=dict(mode='overlay'), containers=containers, **more)


class Pod:
    def __init__(self, plan):
        self.dir = tempfile.TemporaryDirectory(prefix='hpk-bench-')
        at = self.dir.name
        for sub in ('pod', 'scratch', 'host', 'run', 'images/b/rootfs/bin'):
            os.makedirs(f'{at}/{sub}')
        subprocess.run(['cp', BUSYBOX, f'{at}/images/b/rootfs/bin/busybox'], check=True)
        for tool in ('sh', 'sleep', 'true', 'echo'):
            os.symlink('busybox', f'{at}/images/b/rootfs/bin/{tool}')
        with open(f'{at}/pod/plan.json', 'w') as f:
            json.dump(plan, f)
        self.process = subprocess.Popen(UNSHARE + [PAUSE, '--plan', 'pod/plan.json', '--pod-dir', 'pod', '--images', 'images',
                                                   '--scratch', 'scratch', '--host', 'host', '--run', 'run'],
                                        cwd=at, stderr=subprocess.DEVNULL)
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


def switches(pid):
    total = 0
    for task in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{task}/status') as f:
            total += int(re.search(r'^voluntary_ctxt_switches:\s+(\d+)', f.read(), re.M)[1])
    return total


def memory(pid):
    """RSS, and what of it is nobody else's and no file's, KiB"""
    with open(f'/proc/{pid}/smaps_rollup') as f:
        text = f.read()
    value = lambda name: int(re.search(rf'^{name}:\s+(\d+)', text, re.M)[1])
    return value('Rss'), value('Private_Dirty')


def rest(count):
    p = Pod(pod([container(f'c{i}', 'exec sleep 100000') for i in range(count)]))
    p.until(lambda s: all('running' in c['state'] for c in s['containers']))
    time.sleep(3)
    before = switches(p.pid)
    time.sleep(10)
    woken = switches(p.pid) - before
    rss, private = memory(p.pid)
    p.end()
    return rss, private, woken * 6


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
    maker = subprocess.Popen(['nsenter', '-t', str(pid), '-U', '--preserve-credentials', '-p', sys.executable, '-c', MAKE],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    maker.stdout.readline()
    os.kill(pid, signal.SIGSTOP)
    maker.stdin.close()
    maker.wait()
    time.sleep(0.5)
    cpu = lambda: sum(map(int, open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[11:13])) / os.sysconf('SC_CLK_TCK')
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
    tini = subprocess.Popen(UNSHARE + ['tini', '--', 'sleep', '100000'])
    time.sleep(0.5)
    for _ in range(5):
        ours.append(drain(p.pid))
        tinis.append(drain(init_of(tini.pid)))
    p.end()
    tini.kill()
    tini.wait()
    median = lambda runs, i: statistics.median(r[i] for r in runs)
    return [(median(r, 0), median(r, 1)) for r in (ours, tinis)]


def restarts():
    """Milliseconds from an exit to the next start, where no back-off is due."""
    p = Pod(pod([container('c', 'exit 1')], settings=dict(backoff_initial_ms=0, backoff_max_ms=0)))
    state = p.until(lambda s: s['containers'][0]['restart_count'] > 20)
    p.end()
    starts = [e['at'] for e in state['events'] if e['reason'] == 'Started']
    seconds = [float(s[17:-1]) + 60 * int(s[14:16]) for s in starts]
    return statistics.median(b - a for a, b in zip(seconds, seconds[1:])) * 1000


def exec_probe():
    """CPU and wall milliseconds of one exec of true in a container, by the control socket."""
    p = Pod(pod([container('c', 'exec sleep 100000')]))
    p.until(lambda s: 'running' in s['containers'][0]['state'])
    import socket
    runs = []
    for _ in range(300):
        begun = time.perf_counter()
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(f'{p.dir.name}/run/supervisor.sock')
            s.sendall(b'{"hello":{"version":1}}\n{"exec":{"container":"c","command":["true"],"stdout":true,"stderr":true}}\n')
            while s.recv(65536):
                pass
        runs.append(time.perf_counter() - begun)
    p.end()
    return statistics.median(runs) * 1000


def main():
    print('## The supervisor as a process\n')
    print('| at rest | RSS KiB | private KiB | wake-ups a minute |\n|---|---|---|---|')
    for count in (1, 10):
        print('| {} container{} | {} | {} | {} |'.format(count, 's' * (count > 1), *rest(count)))
    print(f'\n| {ORPHANS} zombies drained | ms | CPU ms |\n|---|---|---|')
    rows = orphans()
    for name, (wall, cpu) in zip(('hpk-pause', 'tini'), rows):
        print(f'| {name} | {wall * 1000:.0f} | {cpu * 1000:.0f} |')
    print(f'| ratio | {rows[0][0] / rows[1][0]:.2f} | {rows[0][1] / max(rows[1][1], 0.01):.2f} |')
    print(f'\n| one thing | ms, median |\n|---|---|\n| start, run of `exit 1`, restart (no back-off) | {restarts():.1f} |')
    print(f'| exec of `true` by the control socket, to the end of the stream | {exec_probe():.2f} |')


PAUSE, BUSYBOX = map(os.path.abspath, sys.argv[1:])
main()
