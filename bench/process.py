"""What the measurements in the folders beside share: what the kernel says of a process, and a supervisor by itself."""

import json
import os
import re
import subprocess

# Namespaces as a pod's parent container has them, for the program that follows.
UNSHARE = [
    'unshare',
    '--user',
    '--map-root-user',
    '--net',
    '--pid',
    '--fork',
    '--mount',
    '--ipc',
    '--uts',
    '--mount-proc',
    '--kill-child',
    '--',
]


def switches(pid):
    """How often its threads have gone to sleep: each is one wake-up."""
    total = 0
    for task in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{task}/status') as f:
            total += int(re.search(r'^voluntary_ctxt_switches:\s+(\d+)', f.read(), re.M)[1])
    return total


def memory(pid, *private):
    """KiB: resident, and of it what these lines of smaps_rollup add up to."""
    with open(f'/proc/{pid}/smaps_rollup') as f:
        text = f.read()
    size = lambda field: int(re.search(rf'^{field}:\s+(\d+)', text, re.M)[1])
    return size('Rss'), sum(map(size, private or ('Private_Dirty', 'Private_Clean')))


def start_supervisor(at, unshare, pause, plan):
    """hpk-pause as PID 1 of new namespaces. Its folders are below `at`, where the images are already."""
    for sub in ('pod', 'scratch', 'host', 'run'):
        os.makedirs(f'{at}/{sub}')
    with open(f'{at}/pod/plan.json', 'w') as f:
        json.dump(plan, f)
    folders = dict(pod_dir='pod', images='images', scratch='scratch', host='host', run='run')
    flags = [word for name, folder in folders.items() for word in (f'--{name.replace("_", "-")}', folder)]
    command = [*unshare, pause, '--plan', 'pod/plan.json', *flags]
    return subprocess.Popen(command, cwd=at, stderr=subprocess.DEVNULL)
