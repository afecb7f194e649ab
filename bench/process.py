"""What the kernel says of a process: for the measurements in the folders beside."""

import os
import re


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
