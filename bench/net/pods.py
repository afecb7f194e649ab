#!/usr/bin/env python3
"""What HPK's network costs a real pod: the first packet to a peer it never spoke to, and hpk-netns at rest, by what the pod
did before.

  pods.py SX

SX is tests/site/sx; the site and HPK on it must be up, with no other pods on it. Prints Markdown.
"""

import json
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
from process import memory, switches

SX = sys.argv[1]
PEERS = int(os.environ.get('PEERS', '20'))
RESTING = int(os.environ.get('RESTING', '6'))  # Pods of each kind whose rest is looked at.
NAMESPACE = f'bench-net-{os.getpid()}'
CONNECT = '''
import socket, sys, time
try:
    # What the program itself does for the first time is not the network's.
    socket.create_connection(('127.0.0.1', 9), 1)
except OSError:
    pass
for ip in sys.argv[1:]:
    times = []
    for _ in range(2):
        began = time.perf_counter()
        socket.create_connection((ip, 8080), 10).close()
        times.append(1000 * (time.perf_counter() - began))
    print(*times)
'''


def kubectl(*args, **more):
    command = [SX, 'login', '-u', 'alice', 'kubectl', '-n', NAMESPACE, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout


def pod(name, node, role, image, command):
    return {
        'apiVersion': 'v1',
        'kind': 'Pod',
        'metadata': {
            'name': name,
            'labels': {'role': role},
            'annotations': {'slurm-job.hpk.io/flags': f'--nodelist={node}'},
        },
        'spec': {
            'terminationGracePeriodSeconds': 1,
            'containers': [{'name': 'main', 'image': image, 'command': command}],
        },
    }


def of_pod(uid):
    """The host's pids of the two hpk-netns of a pod: the job's first process, and the one that works."""
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{pid}/comm') as f, open(f'/proc/{pid}/cmdline') as g:
                words = g.read().split('\0')
                if f.read().strip() == 'hpk-netns' and uid in words[2]:
                    found[words[1]] = int(pid)
        except (OSError, IndexError):
            pass  # It ended meanwhile.
    if found.keys() != {'run', 'work'}:
        sys.exit(f'of pod {uid} there are only {found}')
    return found['run'], found['work']


def show(values, form='{:.1f}'):
    return f'{form.format(statistics.median(values))} ({form.format(min(values))}–{form.format(max(values))})'


def rest(pids):
    """Rows of a table: the two of each pod, a good minute after the last packet."""
    time.sleep(75)  # Longer than a session's timers run, and than the silence after which memory is given back.
    before = {name: [switches(pid) for pid in both] for name, both in pids.items()}
    time.sleep(60)
    kinds = {}
    for name, both in pids.items():
        wakes = sum(switches(pid) - b for pid, b in zip(both, before[name]))
        kinds.setdefault(name.rsplit('-', 1)[0], []).append([*map(memory, both), wakes])
    for kind, pods in kinds.items():
        first, work = [m for m, _, _ in pods], [m for _, m, _ in pods]
        both = [f[0] + w[0] for f, w in zip(first, work)]
        print(
            f'| {LABELS[kind]} | {len(pods)} | {show([m[0] for m in first], "{:.0f}")} | {show([m[0] for m in work], "{:.0f}")} '
            f'| {show(both, "{:.0f}")} | {show([f[1] + w[1] for f, w in zip(first, work)], "{:.0f}")} '
            f'| {show([w for _, _, w in pods], "{:.0f}")} |',
            flush=True,
        )


LABELS = {
    'new': 'new',
    'far': 'was connected to from another node',
    'near': 'was connected to from its node',
    'client': 'has connected to all',
    'sink': 'took a stream for 5 s, and one for 1 s of each of the next',
    'load': 'sent a stream for a second',
    'exec': 'ran ten commands, and 8 MiB of its log were read',
    'asker': 'asked a service whose endpoints changed ten times',
    'told': 'new, and told of that service',
}


def main():
    serve = ['sh', '-c', 'exec httpd -f -p 8080 -h /tmp']
    pods = [
        pod(f'{where}-{n}', node, where, 'login:5000/busybox:1', serve)
        for where, node in [('far', 'c1'), ('near', 'c2')]
        for n in range(PEERS)
    ]
    pods.append(pod('client-0', 'c2', 'client', 'login:5000/toolbox:1', ['sleep', 'infinity']))
    pods.append(pod('sink-0', 'c1', 'sink', 'login:5000/toolbox:1', ['iperf3', '-s']))
    says = ['sh', '-c', 'head -c 6291456 /dev/zero | base64; exec sleep infinity']
    for kind, command in [
        ('told', ['sleep', 'infinity']),
        ('load', ['sleep', 'infinity']),
        ('exec', says),
        ('asker', ['sleep', 'infinity']),
    ]:
        pods += [pod(f'{kind}-{n}', ['c1', 'c2'][n % 2], kind, 'login:5000/toolbox:1', command) for n in range(RESTING)]
    service = {
        'apiVersion': 'v1',
        'kind': 'Service',
        'metadata': {'name': 'changing'},
        'spec': {'selector': {'role': 'far'}, 'ports': [{'port': 80, 'targetPort': 8080}]},
    }
    kubectl('apply', '-f', '-', input=json.dumps({'apiVersion': 'v1', 'kind': 'List', 'items': [service, *pods]}))
    kubectl('wait', 'pod', '--all', '--for=condition=Ready', '--timeout=300s')
    found = {p['metadata']['name']: p for p in json.loads(kubectl('get', 'pods', '-o', 'json'))['items']}
    ip = {name: p['status']['podIP'] for name, p in found.items()}
    pids = {name: of_pod(p['metadata']['uid']) for name, p in found.items()}
    print(f'{PEERS} peers of each kind; a TCP connection to each, then a second one; milliseconds.\n')
    print('| | first | second |\n|---|---|---|')
    for where, label in [('far', 'on another node'), ('near', 'on the same node')]:
        out = kubectl('exec', 'client-0', '--', 'python3', '-c', CONNECT, *[ip[f'{where}-{n}'] for n in range(PEERS)])
        first, second = zip(*[map(float, line.split()) for line in out.splitlines()])
        print(f'| {label} | {show(first, "{:.2f}")} | {show(second, "{:.2f}")} |')
    stream = lambda name, seconds: json.loads(
        kubectl('exec', name, '--', 'iperf3', '-c', ip['sink-0'], '-t', seconds, '-J')
    )
    sent = stream('client-0', '5')
    print(f'\nOne stream between pods of two nodes: {sent["end"]["sum_received"]["bits_per_second"] / 1e9:.2f} Gbit/s.')
    after = {name: memory(pids[name][1]) for name in ('client-0', 'sink-0')}
    for name, (resident, private) in after.items():
        print(f'\nhpk-netns work of {name} just after it: {resident} KiB resident, {private} of it private.')
    print('\nThe two hpk-netns of a pod at rest, KiB resident: medians (ranges).\n')
    print(
        '| the pod | pods | the job\'s first process | the one that works | both | of it private | wake-ups in a minute |\n|---|---|---|---|---|---|---|'
    )
    rest({f'new-{n}': pids[f'told-{n}'] for n in range(RESTING)})
    for n in range(RESTING):
        stream(f'load-{n}', '1')
        for _ in range(10):
            kubectl('exec', f'exec-{n}', '--', 'ls', '/')
        assert len(kubectl('logs', f'exec-{n}')) > 8 << 20
    for change in range(10):
        kubectl(
            'patch',
            'service',
            'changing',
            '-p',
            json.dumps({'spec': {'selector': {'role': ['near', 'far'][change % 2]}}}),
        )
        for n in range(RESTING):
            subprocess.run(
                [
                    SX,
                    'login',
                    '-u',
                    'alice',
                    'kubectl',
                    '-n',
                    NAMESPACE,
                    'exec',
                    f'asker-{n}',
                    '--',
                    'curl',
                    '-s',
                    '-o',
                    '/dev/null',
                    '--max-time',
                    '1',
                    'http://changing/',
                ],
                capture_output=True,
            )
    rest(pids)


subprocess.run(
    [SX, 'login', '-u', 'alice', 'kubectl', 'create', 'namespace', NAMESPACE], check=True, capture_output=True
)
try:
    # Without its service account no pod can be made.
    kubectl('wait', '--for=create', 'serviceaccount/default', '--timeout=30s')
    main()
except subprocess.CalledProcessError as error:
    sys.exit(f'{" ".join(error.cmd)}: {error.stdout}{error.stderr}')
finally:
    subprocess.run(
        [SX, 'login', '-u', 'alice', 'kubectl', 'delete', 'namespace', NAMESPACE, '--wait=false'], capture_output=True
    )
