#!/usr/bin/env python3
"""What a pod costs beside a plain batch job that runs a bare `apptainer exec` of the same image.

  spine.py [--runs N] [start] [one] [many] [memory]

start   the job's first process -> first instruction of the first container, on the compute node and without
        Slurm: `hpk-netns run` of a pod's folder against `apptainer exec`, in turn; with 1 and 5 containers
one     API create -> first instruction, one pod, against sbatch of the bare job, in turn
many    20 pods at once against 20 batch jobs: until the first instruction of each, until all are seen ended
memory  RSS and private memory on the compute node beside the containers' own processes, 1 and 10 containers

Runs on the login node as the user. Times are of one clock: the nodes share the machine's.
"""
import argparse, json, os, re, shutil, statistics, subprocess, sys, time

IMAGE = 'login:5000/toolbox:1'  # busybox' date has no nanoseconds
HOME = os.path.expanduser('~')
WORK = HOME + '/.spine'
HPK_HOME = os.environ.get('HPK_HOME', HOME + '/.hpk')
NOW = 'date +%s.%N'


def sh(*argv, text=None, check=True):
    r = subprocess.run(argv, input=text, capture_output=True, text=True)
    if check and r.returncode:
        sys.exit(f'spine.py: {" ".join(argv)}: {r.stderr.strip()}')
    return r.stdout


def pod(name, containers=1, command=None, restart='Never'):
    command = command or ['date', '-u', '+%s.%N']
    spec = [{'name': f'c{i}', 'image': IMAGE, 'command': command} for i in range(containers)]
    return json.dumps({'apiVersion': 'v1', 'kind': 'Pod', 'metadata': {'name': name, 'labels': {'bench': 'spine'}},
                       'spec': {'restartPolicy': restart, 'containers': spec, 'terminationGracePeriodSeconds': 1}})


def status(name):
    return json.loads(sh('kubectl', 'get', 'pod', name, '-o', 'json'))


def until(what, condition, seconds=120):
    end = time.time() + seconds
    while time.time() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    sys.exit(f'spine.py: {what}: not within {seconds} s')


def clean():
    sh('kubectl', 'delete', 'pod', '-l', 'bench=spine', '--wait=true', '--ignore-not-found', '--timeout=120s')


def spread(values, unit='s', scale=1):
    v = sorted(x * scale for x in values)
    return f'{statistics.median(v):.3g} {unit} ({v[0]:.3g}–{v[-1]:.3g}, {len(v)} runs)'


def image_folder():
    """The image's root folder in the store: what a user would give to a bare `apptainer exec`."""
    name = 'spine-image'
    clean()
    sh('kubectl', 'create', '-f', '-', text=pod(name))
    until('first pod', lambda: status(name)['status'].get('phase') == 'Succeeded')
    uid = status(name)['metadata']['uid']
    with open(f'{HPK_HOME}/pods/{uid}/plan.json') as f:
        folder = json.load(f)['containers'][0]['image_ref']['folder']
    return f'{HPK_HOME}/images/{folder}/rootfs'


def first_stamp(log):
    try:
        with open(log) as f:
            line = f.readline().split()
        return float(line[3]) if len(line) > 3 else None
    except (OSError, ValueError):
        return None


def start(runs):
    """Both sides started alike on one compute node, under srun-less bash: Slurm's own noise is left out."""
    rootfs = image_folder()
    for containers in (1, 5):
        name = f'spine-start-{containers}'
        sh('kubectl', 'create', '-f', '-', text=pod(name, containers))
        until('pod to copy', lambda: status(name)['status'].get('phase') == 'Succeeded')
        uid = status(name)['metadata']['uid']
        template = f'{WORK}/{name}'
        shutil.rmtree(template, ignore_errors=True)
        shutil.copytree(f'{HPK_HOME}/pods/{uid}', template, symlinks=True)
        for leftover in ('status.json', 'launch.json', 'link.json'):
            if os.path.exists(f'{template}/{leftover}'):
                os.unlink(f'{template}/{leftover}')
        shutil.rmtree(f'{template}/logs', ignore_errors=True)
        script = f'''
import json, os, subprocess, sys, time, shutil
netns = os.path.expanduser('~/.local/libexec/hpk/hpk-netns')
bare, ours, last = [], [], []
def stamp(path):
    with open(path) as f: return float(f.readline().split()[3])
for i in range({runs} + 1):
    t = time.time()
    out = subprocess.run(['apptainer', 'exec', '{rootfs}', 'date', '-u', '+%s.%N'], capture_output=True, text=True).stdout
    b = float(out) - t
    run = '{template}.run'
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree('{template}', run, symlinks=True)
    t = time.time()
    subprocess.run([netns, 'run', run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stamps = sorted(stamp(f'{{run}}/logs/c{{c}}/0.log') - t for c in range({containers}))
    if i:  # the first pair warms the caches
        bare.append(b); ours.append(stamps[0]); last.append(stamps[-1])
print(json.dumps([bare, ours, last]))
'''
        result = sh('srun', '-Q', '--mem=500', 'python3', '-', text=script)
        bare, ours, last = json.loads(result.strip().splitlines()[-1])
        ratio = statistics.median(o / b for o, b in zip(ours, bare))
        print(f'start, {containers} containers: bare apptainer exec {spread(bare, "ms", 1e3)}; pod\'s first container '
              f'{spread(ours, "ms", 1e3)}; ratio, median of pairs {ratio:.2f}; last container {spread(last, "ms", 1e3)}')
    clean()


def batch(rootfs, name, output):
    script = f'#!/bin/bash\n{NOW} >{output}.slurm\nexec apptainer exec {rootfs} date -u +%s.%N >{output}\n'
    return sh('sbatch', '--parsable', '-J', name, '--mem=100', '-c1', '-o', '/dev/null', text=script).strip()


def number(path):
    try:
        with open(path) as f:
            return float(f.read())
    except (OSError, ValueError):
        return None


def log_stamp(name):
    """The first container's own time stamp, once it ended."""
    out = sh('kubectl', 'logs', name, check=False).strip()
    return float(out) if re.fullmatch(r'[0-9.]+', out) else None


def one(runs):
    rootfs = image_folder()
    clean()
    pods, jobs, slurm, ended = [], [], [], []
    for i in range(runs):
        name, output = f'spine-one-{i}', f'{WORK}/one-{i}'
        t = time.time()
        sh('kubectl', 'create', '-f', '-', text=pod(name))
        until('the pod to succeed', lambda: status(name)['status'].get('phase') == 'Succeeded')
        seen = time.time()
        first = until('the pod\'s log', lambda: log_stamp(name))
        pods.append(first - t)
        ended.append(seen - first)
        t = time.time()
        batch(rootfs, name, output)
        jobs.append(until('the batch job', lambda: number(output)) - t)
        slurm.append(number(output + '.slurm') - t)
    print(f'one pod: kubectl create -> first instruction {spread(pods)}; sbatch of a bare apptainer exec {spread(jobs)}, of which '
          f'until its script started {spread(slurm)}; difference of medians {(statistics.median(pods) - statistics.median(jobs)) * 1e3:.0f} ms')
    print(f'one pod: its first instruction -> Succeeded seen by kubectl {spread(ended)}')
    clean()


def many(runs, count=20):
    rootfs = image_folder()
    for _ in range(max(1, runs // 5)):
        clean()
        manifest = '\n---\n'.join(pod(f'spine-many-{i}') for i in range(count))
        t = time.time()
        sh('kubectl', 'create', '-f', '-', text=manifest)
        def ended():
            items = json.loads(sh('kubectl', 'get', 'pods', '-l', 'bench=spine', '-o', 'json'))['items']
            return sum(p['status'].get('phase') == 'Succeeded' for p in items) >= count
        until('all pods to succeed', ended)
        seen = time.time() - t
        firsts = [log_stamp(f'spine-many-{i}') - t for i in range(count)]
        t = time.time()
        for i in range(count):
            batch(rootfs, f'spine-many-{i}', f'{WORK}/many-{i}')
        jobs = [until('a batch job', lambda: number(f'{WORK}/many-{i}')) - t for i in range(count)]
        for i in range(count):
            os.unlink(f'{WORK}/many-{i}')
        print(f'{count} pods at once: first instruction {min(firsts):.2f}–{max(firsts):.2f} s, all seen Succeeded at {seen:.2f} s; '
              f'{count} sbatch: first instruction {min(jobs):.2f}–{max(jobs):.2f} s')
    clean()


def memory():
    image_folder()
    for containers in (1, 10):
        clean()
        name = f'spine-memory-{containers}'
        sh('kubectl', 'create', '-f', '-', text=pod(name, containers, ['sleep', '3600']))
        until('the pod to run', lambda: status(name)['status'].get('phase') == 'Running')
        job = sh('squeue', '-h', '-n', f'default/{name}', '-o', '%i').strip()
        script = r'''
import os, json
me = os.getuid()
rows = []
for p in os.listdir('/proc'):
    if not p.isdigit(): continue
    try:
        env = open(f'/proc/{p}/cgroup').read()
        if 'job_JOB/' not in env or 'job_JOB/step_batch' not in env: continue
        argv = open(f'/proc/{p}/cmdline').read().split('\0')
        s = dict(l.split(':', 1) for l in open(f'/proc/{p}/smaps_rollup').read().splitlines()[1:])
    except OSError: continue
    kb = lambda k: int(s[k].split()[0])
    rows.append((argv[0], argv[1:3], kb('Rss'), kb('Private_Clean') + kb('Private_Dirty')))
print(json.dumps(rows))
'''.replace('JOB', job)
        node = sh('squeue', '-h', '-j', job, '-o', '%N').strip()
        rows = json.loads(sh('srun', '-Q', '--mem=100', '-w', node, 'python3', '-', text=script).strip().splitlines()[-1])
        ours = [r for r in rows if 'sleep' not in r[0]]
        print(f'memory, {containers} containers: ' + '; '.join(f'{os.path.basename(r[0])} {r[2]} / {r[3]} KiB' for r in ours)
              + f'; together RSS {sum(r[2] for r in ours)} private {sum(r[3] for r in ours)} KiB')
    clean()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=10)
    p.add_argument('parts', nargs='*', default=['start', 'one', 'many', 'memory'])
    a = p.parse_args()
    os.makedirs(WORK, exist_ok=True)
    for part in a.parts:
        {'start': lambda: start(a.runs), 'one': lambda: one(a.runs), 'many': lambda: many(a.runs), 'memory': memory}[part]()


main()
