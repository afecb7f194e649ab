#!/usr/bin/env python3
"""What HPK's network costs a real pod: the first packet to a peer it never spoke to, and hpk-netns at rest.

  pods.py SX

SX is tests/site/sx; the site and HPK on it must be up, with no other pods on it. Prints Markdown.
"""
import json, os, statistics, subprocess, sys, time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
from process import memory, switches

SX = sys.argv[1]
PEERS = int(os.environ.get('PEERS', '20'))
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
    return {'apiVersion': 'v1', 'kind': 'Pod',
            'metadata': {'name': name, 'labels': {'role': role}, 'annotations': {'slurm-job.hpk.io/flags': f'--nodelist={node}'}},
            'spec': {'terminationGracePeriodSeconds': 1, 'containers': [{'name': 'main', 'image': image, 'command': command}]}}


def of_pod(uid):
    """The host's pid of hpk-netns of a pod."""
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{pid}/comm') as f, open(f'/proc/{pid}/cmdline') as g:
                words = g.read().split('\0')
                if f.read().strip() == 'hpk-netns' and words[1:2] == ['work'] and uid in words[2]:
                    return int(pid)
        except OSError:
            pass  # It ended meanwhile.
    sys.exit(f'no hpk-netns runs for pod {uid}')


def show(values, form='{:.1f}'):
    return f'{form.format(statistics.median(values))} ({form.format(min(values))}–{form.format(max(values))})'


def main():
    serve = ['sh', '-c', 'exec httpd -f -p 8080 -h /tmp']
    pods = [pod(f'{where}-{n}', node, where, 'login:5000/busybox:1', serve)
            for where, node in [('far', 'c1'), ('near', 'c2')] for n in range(PEERS)]
    pods.append(pod('client', 'c2', 'client', 'login:5000/toolbox:1', ['sleep', 'infinity']))
    pods.append(pod('sink', 'c1', 'sink', 'login:5000/toolbox:1', ['iperf3', '-s']))
    kubectl('apply', '-f', '-', input=json.dumps({'apiVersion': 'v1', 'kind': 'List', 'items': pods}))
    kubectl('wait', 'pod', '--all', '--for=condition=Ready', '--timeout=300s')
    found = {p['metadata']['name']: p for p in json.loads(kubectl('get', 'pods', '-o', 'json'))['items']}
    ip = {name: p['status']['podIP'] for name, p in found.items()}
    pids = {name: of_pod(p['metadata']['uid']) for name, p in found.items()}
    new = memory(pids['far-0'])
    print(f'{PEERS} peers of each kind; a TCP connection to each, then a second one; milliseconds.\n')
    print('| | first | second |\n|---|---|---|')
    for where, label in [('far', 'on another node'), ('near', 'on the same node')]:
        out = kubectl('exec', 'client', '--', 'python3', '-c', CONNECT, *[ip[f'{where}-{n}'] for n in range(PEERS)])
        first, second = zip(*[map(float, line.split()) for line in out.splitlines()])
        print(f'| {label} | {show(first, "{:.2f}")} | {show(second, "{:.2f}")} |')
    sent = json.loads(kubectl('exec', 'client', '--', 'iperf3', '-c', ip['sink'], '-t', '5', '-J'))
    print(f'\nOne stream between pods of two nodes: {sent["end"]["sum_received"]["bits_per_second"] / 1e9:.2f} Gbit/s.')
    after = {name: memory(pids[name]) for name in ('client', 'sink')}
    time.sleep(60)  # longer than a session's timers run after the last packet
    some = ['client', 'sink', 'far-0', 'near-0']
    before = {name: switches(pids[name]) for name in some}
    time.sleep(60)
    print('\n| hpk-netns of a pod | resident KiB | of it private | wake-ups in a minute |\n|---|---|---|---|')
    print(f'| new | {new[0]} | {new[1]} | |')
    for name in after:
        print(f'| {name}, just after the stream | {after[name][0]} | {after[name][1]} | |')
    for name in some:
        resident, private = memory(pids[name])
        print(f'| {name}, at rest | {resident} | {private} | {switches(pids[name]) - before[name]} |')


subprocess.run([SX, 'login', '-u', 'alice', 'kubectl', 'create', 'namespace', NAMESPACE], check=True, capture_output=True)
try:
    # Without its service account no pod can be made.
    kubectl('wait', '--for=create', 'serviceaccount/default', '--timeout=30s')
    main()
except subprocess.CalledProcessError as error:
    sys.exit(f'{" ".join(error.cmd)}: {error.stdout}{error.stderr}')
finally:
    subprocess.run([SX, 'login', '-u', 'alice', 'kubectl', 'delete', 'namespace', NAMESPACE, '--wait=false'], capture_output=True)
