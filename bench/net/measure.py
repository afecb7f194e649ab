#!/usr/bin/env python3
"""The overlay between two nodes of the site, beside kernel VXLAN and the boringtun command, in one run.

  measure.py FOLDER BORINGTUN TAG

FOLDER has the examples of hpk-netns. TAG names the network namespaces of the site's nodes.
Every kind stands from the start between the same two namespaces, each on a device of its own; each round measures all
kinds one after the other, every second round in the reverse order, so that what else the machine does hits all of them.
Beside what went through, the CPU time for it is taken: of the whole machine, and of the two datapaths alone, which
says what services and policy cost where throughput spreads too much to show it.
Prints Markdown: medians, and the range in brackets.
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
from process import memory, switches

FOLDER, BORINGTUN, TAG = sys.argv[1:4]
END, ROUND_TRIP, BARE = (f'{FOLDER}/{name}' for name in ('overlay_end', 'round_trip', 'bare_forwarder'))
ROUNDS = int(os.environ.get('ROUNDS', '11'))
SECONDS = int(os.environ.get('SECONDS_EACH', '2'))
ASKS = int(os.environ.get('ASKS', '5000'))
ONLY = os.environ.get('ONLY', '').split()
# Each end, program and datapath, on a processor of its own: as jobs at sites whose Slurm confines them to their cores.
APART = dict(a=0, b=1) if os.environ.get('APART') else {}
NODES = {'a': (f'{TAG}-c1', '10.77.0.11'), 'b': (f'{TAG}-c2', '10.77.0.12')}
POD = {side: f'{TAG}-bench-{side}' for side in NODES}
OTHER = {'a': 'b', 'b': 'a'}
HOST = {'a': 1, 'b': 2}
SERVICES, ENDPOINTS, RULES = 1000, 3, 100
work = tempfile.TemporaryDirectory(prefix='hpk-bench-net-')
running = []


def sh(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout


def inside(ns, *command):
    pin = [
        word for side, cpu in APART.items() if ns in (NODES[side][0], POD[side]) for word in ('taskset', '-c', str(cpu))
    ]
    return [*pin, 'ip', 'netns', 'exec', ns, *command]


def start(*command, **more):
    process = subprocess.Popen(command, **more)
    running.append(process)
    return process


class Kind:
    """One way between the two namespaces; `target` is what the client connects to."""

    def __init__(self, name, net):
        self.name, self.net = name, net
        self.target, self.pids = self.address('b'), []
        self.bits, self.round_trips, self.pings, self.machine, self.own = [], [], [], [], []

    def address(self, side):
        return f'{self.net}.{HOST[side]}'


def vxlan():
    kind = Kind('vxlan', '10.201.0')
    for side, (node, ip) in NODES.items():
        peer = NODES[OTHER[side]][1]
        sh(
            'ip',
            '-n',
            node,
            'link',
            'add',
            'vx-bench',
            'type',
            'vxlan',
            'id',
            '77',
            'local',
            ip,
            'remote',
            peer,
            'dstport',
            '4789',
        )
        sh('ip', '-n', node, 'link', 'set', 'vx-bench', 'netns', POD[side])
        sh('ip', '-n', POD[side], 'addr', 'add', f'{kind.address(side)}/24', 'dev', 'vx-bench')
        sh('ip', '-n', POD[side], 'link', 'set', 'vx-bench', 'up', 'mtu', '1450')
    return kind


def openssl_keys():
    private = subprocess.run(
        ['openssl', 'genpkey', '-algorithm', 'X25519', '-outform', 'DER'], check=True, capture_output=True
    ).stdout
    public = subprocess.run(
        ['openssl', 'pkey', '-inform', 'DER', '-pubout', '-outform', 'DER'],
        input=private,
        check=True,
        capture_output=True,
    ).stdout
    return private[-32:].hex(), public[-32:].hex()


def boringtun():
    if not os.access(BORINGTUN, os.X_OK):
        return None
    kind, keys = Kind('boringtun', '10.202.0'), {side: openssl_keys() for side in NODES}
    for side, (node, _) in NODES.items():
        device = f'bt{side}'
        control = f'/var/run/wireguard/{device}.sock'
        if os.path.exists(control):
            os.unlink(control)
        kind.pids.append(
            start(
                *inside(node, BORINGTUN, '--foreground', '--disable-drop-privileges', '--verbosity', 'error', device),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ).pid
        )
        for _ in range(100):
            if os.path.exists(control):
                break
            time.sleep(0.05)
        peer = OTHER[side]
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(control)
            s.sendall(
                f'set=1\nprivate_key={keys[side][0]}\nlisten_port=51820\npublic_key={keys[peer][1]}\n'
                f'endpoint={NODES[peer][1]}:51820\nallowed_ip={kind.net}.0/24\n\n'.encode()
            )
            answer = s.recv(200).decode()
            assert 'errno=0' in answer, answer
        sh('ip', '-n', node, 'link', 'set', device, 'netns', POD[side])
        sh('ip', '-n', POD[side], 'addr', 'add', f'{kind.address(side)}/24', 'dev', device)
        sh('ip', '-n', POD[side], 'link', 'set', device, 'up', 'mtu', '1420')
    return kind


def overlay(name, net, device, mode, services=False):
    kind, ends = Kind(name, net), {}
    for side, (node, ip) in NODES.items():
        end = start(
            *inside(node, END, f'/run/netns/{POD[side]}', device, kind.address(side), ip, '1440', mode),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        endpoint, key = end.stdout.readline().split()
        ends[side] = end, endpoint, None if key == '-' else key
        kind.pids.append(end.pid)

    def tell(side, fact):
        ends[side][0].stdin.write(json.dumps(fact) + '\n')
        ends[side][0].stdin.flush()

    for side in NODES:
        _, endpoint, key = ends[OTHER[side]]
        tell(side, dict(peer=dict(ip=kind.address(OTHER[side]), endpoint=endpoint, public_key=key)))
    if services:
        for n in range(SERVICES):
            facts = dict(
                key=f'bench/s{n}',
                cluster_ips=[f'10.96.{n // 250}.{n % 250 + 1}'],
                affinity_seconds=None,
                ports=[
                    dict(
                        protocol='TCP',
                        port=5201,
                        endpoints=[f'{kind.address("b")}:5201']
                        if n == 7
                        else [f'{net}.{100 + e}:80' for e in range(ENDPOINTS)],
                    )
                ],
            )
            tell('a', dict(service=facts))
        kind.target = '10.96.0.8'
        sh('ip', '-n', POD['a'], 'route', 'add', '10.96.0.0/16', 'dev', device)
        other = [dict(peers=[dict(cidr=f'10.{n}.0.0/16', **{'except': []})], ports=None) for n in range(1, RULES)]
        allowed = dict(peers=[dict(cidr=f'{net}.0/24', **{'except': []})], ports=None)
        for side in NODES:
            tell(side, dict(policy=dict(ingress=other + [allowed], egress=other + [allowed])))
    return kind


def machine_seconds():
    """CPU time that was used since the start, of all processors and everything on them."""
    with open('/proc/stat') as f:
        user, nice, system, _, _, irq, soft = map(int, f.readline().split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf('SC_CLK_TCK')


def own_seconds(pids):
    """CPU time that these processes used."""
    total = 0
    for pid in pids:
        for task in os.listdir(f'/proc/{pid}/task'):
            with open(f'/proc/{pid}/task/{task}/schedstat') as f:
                total += int(f.read().split()[0])
    return total / 1e9


def bare():
    kind, ends = Kind('bare', '10.206.0'), {}
    for side, (node, ip) in NODES.items():
        ends[side] = start(
            *inside(node, BARE, f'/run/netns/{POD[side]}', 'bare', kind.address(side), ip, '1440'),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        kind.pids.append(ends[side].pid)
    endpoint = {side: end.stdout.readline().split()[0] for side, end in ends.items()}
    for side, end in ends.items():
        end.stdin.write(endpoint[OTHER[side]] + '\n')
        end.stdin.flush()
    return kind


def throughput(kind, *more):
    machine, own = machine_seconds(), own_seconds(kind.pids)
    out = sh(*inside(POD['a'], 'iperf3', '-c', kind.target, '-t', str(SECONDS), '-J', *more))
    end = json.loads(out)['end']
    if os.environ.get('DETAILS'):
        sender = end['streams'][0]['sender']
        print(
            kind.name,
            {k: sender[k] for k in ('retransmits', 'max_snd_cwnd', 'mean_rtt')},
            end['cpu_utilization_percent'],
            file=sys.stderr,
        )
    gib = end['sum_received']['bytes'] / 2**30
    kind.machine.append((machine_seconds() - machine) / gib)
    kind.own.append((own_seconds(kind.pids) - own) / gib)
    kind.bits.append(end['sum_received']['bits_per_second'] / 1e9)


def round_trip(kind):
    """µs, median, program to program."""
    return float(sh(*inside(POD['a'], ROUND_TRIP, 'ask', f'{kind.address("b")}:7777', str(ASKS))).split()[0])


def ping(kind):
    """µs, median, kernel to kernel: nothing is woken for it but what carries it."""
    out = sh(*inside(POD['a'], 'ping', '-n', '-A', '-c', '300', kind.address('b')))
    return statistics.median(float(t) for t in re.findall(r'time=([\d.]+) ms', out)) * 1000


def at_rest(pids):
    time.sleep(45)  # longer than a session's timers run after the last packet
    before = [switches(p) for p in pids]
    time.sleep(60)
    return [after - b for after, b in zip((switches(p) for p in pids), before)]


def remove():
    for process in running:
        process.kill()
        process.wait()
    for ns in POD.values():
        subprocess.run(['ip', 'netns', 'del', ns], capture_output=True)


def show(values, form='{:.2f}'):
    if not values:
        return '—'
    middle = form.format(statistics.median(values))
    return f'{middle} ({form.format(min(values))}–{form.format(max(values))})'


def ratio(kinds, name, of, field):
    """Of the pairs of each round."""
    if not kinds.get(name) or not kinds.get(of):
        return []
    return [a / b for a, b in zip(getattr(kinds[name], field), getattr(kinds[of], field))]


def main():
    for ns in POD.values():
        subprocess.run(['ip', 'netns', 'del', ns], capture_output=True)
        sh('ip', 'netns', 'add', ns)
        sh('ip', '-n', ns, 'link', 'set', 'lo', 'up')
    makers = {
        'vxlan': vxlan,
        'boringtun': boringtun,
        'bare': bare,
        'encrypted': lambda: overlay('encrypted', '10.203.0', 'enc', 'encrypted'),
        'wireguard': lambda: overlay('wireguard', '10.207.0', 'wg', 'wireguard'),
        'plain': lambda: overlay('plain', '10.204.0', 'plain', 'plain'),
        'services': lambda: overlay('services', '10.205.0', 'svc', 'encrypted', services=True),
    }
    kinds = {name: made for name, make in makers.items() if (not ONLY or name in ONLY) and (made := make())}
    start(*inside(POD['b'], 'iperf3', '-s'), stdout=subprocess.DEVNULL)
    start(*inside(POD['b'], ROUND_TRIP, 'echo', '7777'))
    for kind in kinds.values():
        for _ in range(50):
            if (
                subprocess.run(
                    inside(POD['a'], 'ping', '-c', '1', '-W', '1', kind.address('b')), capture_output=True
                ).returncode
                == 0
            ):
                break
        else:
            sys.exit(f'{kind.name}: the two ends do not reach each other')
    for n in range(ROUNDS):
        for kind in list(kinds.values())[:: -1 if n % 2 else 1]:
            throughput(kind)
            kind.round_trips.append(round_trip(kind))
            kind.pings.append(ping(kind))
        print(
            f'round {n + 1} of {ROUNDS}: '
            + ', '.join(f'{k.name} {k.bits[-1]:.2f} Gbit/s {k.round_trips[-1]:.0f} µs' for k in kinds.values()),
            file=sys.stderr,
        )
    return kinds


def report(kinds):
    busy = open('/proc/loadavg').read().split()[:3]
    print(f'''## Network

Two nodes of the site, {os.cpu_count()} CPUs for all; iperf3 TCP, one stream, {SECONDS} s; {ASKS} UDP datagrams of 64 bytes there and back
between two programs; ping without pauses; {ROUNDS} rounds of all kinds in turn. Medians and ranges; ratios are taken
round by round. CPU s: of the machine for each GiB that came through, and of the two datapaths alone. Load at the end: {' '.join(busy)}.

| | Gbit/s | of VXLAN | of boringtun | CPU s / GiB | datapaths alone | round trip, µs | of VXLAN | ping, µs |
|---|---|---|---|---|---|---|---|---|''')
    names = dict(
        vxlan='kernel VXLAN',
        boringtun='the boringtun command',
        bare='a bare forwarder, no encryption',
        encrypted='overlay, encrypted',
        wireguard='overlay, encrypted, where a processor has no AES',
        plain='overlay, encryption off',
        services=f'overlay, encrypted, through one of {SERVICES} services, {RULES} policy rules each way',
    )
    for name, label in names.items():
        if name in kinds:
            k = kinds[name]
            print(
                f'| {label} | {show(k.bits)} | {show(ratio(kinds, name, "vxlan", "bits"))} | {show(ratio(kinds, name, "boringtun", "bits"))} '
                f'| {show(k.machine)} | {show(k.own) if k.pids else "—"} | {show(k.round_trips, "{:.0f}")} | {show(ratio(kinds, name, "vxlan", "round_trips"))} | {show(k.pings, "{:.0f}")} |'
            )
    cost = {
        field: [100 * (sign * r - sign) for r in ratio(kinds, 'services', 'encrypted', field)]
        for field, sign in dict(bits=-1, machine=1, own=1).items()
    }
    print(f'''
Services and policy cost {show(cost["bits"], "{:.1f}")} % of the throughput, {show(cost["machine"], "{:.1f}")} % more CPU time of the
machine for each byte, {show(cost["own"], "{:.1f}")} % more of the two datapaths.''')
    pids = kinds['encrypted'].pids if 'encrypted' in kinds else []
    if pids and not os.environ.get('NO_REST'):
        wakes = at_rest(pids)
        print(
            f'At rest, the datapath alone: {", ".join(map(str, wakes))} wake-ups in a minute; '
            f'resident {", ".join(str(memory(p)[0]) for p in pids)} KiB after the load.'
        )


try:
    report(main())
except subprocess.CalledProcessError as error:
    sys.exit(f'{" ".join(error.cmd)}: {error.stdout}{error.stderr}')
finally:
    remove()
    work.cleanup()
