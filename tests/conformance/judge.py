#!/usr/bin/env python3
"""Runs upstream's end-to-end tests, one process per test, and writes down what each said.

  judge.py --e2e E2E.TEST --kubectl KUBECTL --kubeconfig FILE --out DIR SET|all [options]

SET is node, resize, network, storage, apps, cli, sched or api, or all: the [Conformance] and [NodeConformance]
tests of that subject; or beyond: those that are neither and can apply here (--beyond); or claims: the tests of external storage for the driver of --driver, and those of the protection
of claims and of default storage classes; or gangs: those of Workloads and PodGroups. A process of its own per test means that a hang or panic costs one test. DIR gets
results.jsonl (as it goes), logs/ and summary.md. Exit status: 0 when all passed, 1 when not, 2 for usage.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

SUBJECTS = {
    'network': ['sig-network'],
    'storage': ['sig-storage'],
    'apps': ['sig-apps'],
    'cli': ['sig-cli'],
    'sched': ['sig-scheduling'],
    'api': ['sig-api-machinery', 'sig-auth', 'sig-instrumentation', 'sig-architecture'],
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('e2e', 'kubectl', 'kubeconfig', 'out'):
        p.add_argument('--' + name, required=True)
    p.add_argument('set')
    p.add_argument('--focus', default='', help='only tests whose name matches this regular expression')
    p.add_argument('--skip', help='no test whose name matches')
    p.add_argument('--timeout', type=int, default=360, help='seconds a test may take (default 360)')
    p.add_argument('--procs', type=int, default=4, help='tests at once (default 4); Serial ones run alone, last')
    p.add_argument('--driver', default=os.path.join(os.path.dirname(os.path.abspath(__file__)), 'driver.yaml'))
    p.add_argument('--sample', type=int, help='only so many tests, chosen at random')
    p.add_argument('--seed', type=int, default=1, help='of --sample (default 1)')
    p.add_argument('--total', type=int, help='start no test after so many seconds')
    p.add_argument('--repo-list', help='KUBE_TEST_REPO_LIST file')
    p.add_argument('--never', default=os.path.join(os.path.dirname(os.path.abspath(__file__)), 'never.txt'))
    p.add_argument('--beyond', default=os.path.join(os.path.dirname(os.path.abspath(__file__)), 'beyond.txt'))
    p.add_argument('--failed', action='store_true', help='only what results.jsonl does not hold as passed')
    return p.parse_args()


CLAIMS = re.compile(
    r'External Storage|PVC Protection|PV Protection|retroactive|default StorageClass|Default StorageClass'
)


def driver(a):
    return ['--storage.testdriver=' + a.driver] if a.set == 'claims' else []


def specs(a):
    """name -> labels, asked of the program itself"""
    report = os.path.join(a.out, 'specs.json')
    subprocess.run(
        [
            a.e2e,
            *driver(a),
            '--ginkgo.dry-run',
            '--ginkgo.succinct',
            '--provider=skeleton',
            '--ginkgo.json-report=' + report,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with open(report) as f:
        suites = json.load(f)
    found = {}
    for suite in suites:
        for spec in suite['SpecReports']:
            if spec['LeafNodeType'] == 'It':
                labels = set(spec['LeafNodeLabels'] or []).union(
                    *[set(labels or []) for labels in spec['ContainerHierarchyLabels'] or []]
                )
                found[' '.join((spec['ContainerHierarchyTexts'] or []) + [spec['LeafNodeText']])] = labels
    return found


def belongs(name, labels, wanted):
    if wanted == 'claims':
        return bool(CLAIMS.search(name))
    if wanted == 'gangs':
        # Beta: none of them is a conformance test yet. Preemption is Slurm's; Jobs that make PodGroups, and devices by DRA, are off.
        return {'sig-scheduling', 'FeatureGate:GenericWorkload'} <= labels and 'reemption' not in name
    if not labels & {'Conformance', 'NodeConformance'}:
        return wanted == 'beyond'
    if wanted == 'beyond':
        return False
    resize = 'FeatureGate:InPlacePodVerticalScaling' in labels or 'InPlace Resize' in name
    if wanted == 'all':
        return True
    if wanted in ('node', 'resize'):
        return resize == (wanted == 'resize') and (resize or 'sig-node' in labels)
    if wanted == 'cli':
        return 'sig-cli' in labels and 'Conformance' in labels
    return not resize and any(s in labels for s in SUBJECTS[wanted])


def never(path):
    """lines of REGEX<TAB>reason"""
    with open(path) as f:
        rows = [line.rstrip('\n').split('\t', 1) for line in f if line.strip() and not line.startswith('#')]
    return [(re.compile(pattern), reason) for pattern, reason in rows]


def inapplicable(path):
    """lines of label or name<TAB>REGEX<TAB>reason: whether a test beyond conformance cannot apply"""
    with open(path) as f:
        rows = [line.rstrip('\n').split('\t', 2) for line in f if line.strip() and not line.startswith('#')]
    labels = re.compile('|'.join(f'(?:{pattern})' for kind, pattern, _ in rows if kind == 'label'))
    names = re.compile('|'.join(f'(?:{pattern})' for kind, pattern, _ in rows if kind == 'name'))
    return lambda name, of: bool(names.search(name)) or any(labels.fullmatch(label) for label in of)


def first_lines(message):
    """a failure in one line, without ginkgo's object dumps"""
    lines = [line.strip() for line in (message or '').splitlines()]
    telling = [
        line for line in lines if line and not re.match(r'[<{}\[\]]|s: |0x|[A-Za-z]+: [\[{(<]|[a-z]+: ["0-9]', line)
    ]
    return ' | '.join((telling or lines)[:4])[:400].replace('\t', ' ')


class Judge:
    def __init__(self, a):
        self.a, self.lock, self.start, self.running = a, threading.Lock(), time.time(), set()
        self.results = {}
        self.file = os.path.join(a.out, 'results.jsonl')
        self.environment = dict(
            os.environ, **({'KUBE_TEST_REPO_LIST': os.path.abspath(a.repo_list)} if a.repo_list else {})
        )
        self.flags = [
            *driver(a),
            '--provider=skeleton',
            '--kubeconfig=' + a.kubeconfig,
            '--kubectl-path=' + a.kubectl,
            '--ginkgo.no-color',
            '--ginkgo.grace-period=30s',
            '--dump-logs-on-failure=false',
            '--disable-log-dump',
            '--num-nodes=-1',
            # Nodes of further partitions are for pods that ask for them.
            '--non-blocking-taints=slurm.hpk.io/partition',
            '--node-schedulable-timeout=1m',
            '--system-pods-startup-timeout=1m',
        ]

    def run(self, number, name, total):
        if self.a.total and time.time() - self.start > self.a.total:
            return
        report = os.path.join(self.a.out, f'{number}.json')
        began = time.time()
        with open(os.path.join(self.a.out, 'logs', f'{number:04}.log'), 'w') as log:
            process = subprocess.Popen(
                [
                    self.a.e2e,
                    *self.flags,
                    '--ginkgo.focus=' + re.escape(name) + '$',
                    f'--ginkgo.timeout={self.a.timeout}s',
                    '--ginkgo.json-report=' + report,
                ],
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
            self.running.add(process)
            try:
                process.wait(self.a.timeout + 90)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.running.discard(process)
        state, reason = self.verdict(report, name, process.returncode)
        result = {
            'name': name,
            'state': state,
            'reason': reason,
            'seconds': round(time.time() - began, 1),
            'log': f'logs/{number:04}.log',
        }
        with self.lock:
            self.results[name] = result
            with open(self.file, 'a') as f:
                print(json.dumps(result), file=f)
            print(
                f'{time.time() - self.start:5.0f} s {len(self.results):3}/{total} {state:7} {result["seconds"]:6} s  {name[:110]}'
                + (f'  <- {reason[:140]}' if reason else ''),
                flush=True,
            )

    @staticmethod
    def verdict(report, name, code):
        try:
            with open(report) as f:
                rows = [spec for suite in json.load(f) for spec in suite['SpecReports']]
            os.unlink(report)
        except (OSError, ValueError):
            return 'failed', f'no report, exit {code}'
        for spec in rows:
            state, message = spec['State'], first_lines((spec.get('Failure') or {}).get('Message'))
            if spec['LeafNodeType'] != 'It':
                if state not in ('passed', 'skipped'):
                    return 'failed', f'{spec["LeafNodeType"]}: {message}'
            elif ' '.join((spec['ContainerHierarchyTexts'] or []) + [spec['LeafNodeText']]) == name:
                if state in ('passed', 'skipped'):
                    return state, message
                return 'failed', ('timed out: ' if state in ('timedout', 'interrupted') else '') + message
        return 'failed', 'no result in the report'

    def stop(self):
        for process in list(self.running):  # ginkgo cleans up on an interrupt
            try:
                os.killpg(process.pid, signal.SIGINT)
            except OSError:
                pass


def summary(a, names, results):
    count = collections.Counter(results[n]['state'] if n in results else 'not run' for n in names)
    order = ('passed', 'failed', 'skipped', 'not run')
    lines = [', '.join(f'{count[k]} {k}' for k in order if count[k]) + f' of {len(names)} ({a.set})', '']
    for state in ('failed', 'skipped', 'not run'):
        for n in names:
            r = results.get(n, {'state': 'not run', 'reason': '', 'log': ''})
            if r['state'] == state:
                lines.append(f'- {state}: {n}: {r["reason"]} ({r["log"]})')
    text = '\n'.join(lines) + '\n'
    with open(os.path.join(a.out, 'summary.md'), 'w') as f:
        f.write(text)
    print('\n' + text)
    print(f'{count["passed"]} passed, {count["failed"]} failed, {count["skipped"]} skipped')
    return 0 if count['passed'] == len(names) else 1


def main():
    a = arguments()
    a.out = os.path.abspath(a.out)
    os.makedirs(os.path.join(a.out, 'logs'), exist_ok=True)
    if a.set not in (*SUBJECTS, 'node', 'resize', 'beyond', 'claims', 'gangs', 'all'):
        print(f'judge.py: no set {a.set}; see --help', file=sys.stderr)
        return 2
    known, left_out = specs(a), never(a.never)
    cannot = inapplicable(a.beyond) if a.set == 'beyond' else lambda *_: False
    names = sorted(
        n
        for n, labels in known.items()
        if belongs(n, labels, a.set)
        and re.search(a.focus, n)
        and not (a.skip and re.search(a.skip, n))
        and not any(p.search(n) for p, _ in left_out)
        and not cannot(n, labels)
    )
    if not names:
        print('judge.py: no test matches', file=sys.stderr)
        return 2
    if a.sample and a.sample < len(names):
        names = sorted(random.Random(a.seed).sample(names, a.sample))
    judge = Judge(a)
    if a.failed and os.path.exists(judge.file):
        with open(judge.file) as f:
            old = {r['name']: r for r in map(json.loads, f)}
        judge.results = {n: r for n, r in old.items() if r['state'] == 'passed' and n in names}
    with open(judge.file, 'w') as f:
        for r in judge.results.values():
            print(json.dumps(r), file=f)
    todo = [(i, n) for i, n in enumerate(names) if n not in judge.results]
    for serial in (False, True):
        part = [(i, n) for i, n in todo if ('Serial' in known[n]) == serial]
        with concurrent.futures.ThreadPoolExecutor(1 if serial else a.procs) as pool:
            runs = [pool.submit(judge.run, i, n, len(names)) for i, n in part]
            try:
                for r in runs:
                    r.result()
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                judge.stop()
    return summary(a, names, judge.results)


signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
