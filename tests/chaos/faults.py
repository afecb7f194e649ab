"""The faults of a campaign. Each is made, lasts, and is taken back; the site is whole again after it.

A fault that kills a pod's own processes or its job is told which pod it strikes: that pod may then be Failed, and must
say so. All others must change nothing for any pod.
"""

import os
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SX = os.path.join(HERE, "..", "site", "sx")
NODES = ("c1", "c2")


def sx(node, *command, user=None, check=False, text=None):
    """Runs a command in a node of the site."""
    who = ["-u", user] if user else []
    return subprocess.run(
        [SX, node, *who, *command], check=check, capture_output=True, text=True, input=text, timeout=180
    )


def alice(command, **more):
    return sx("login", "bash", "-c", command, user="alice", **more)


def pkill(pattern, signal="KILL"):
    alice(f"pkill -{signal} -u alice -f '{pattern}'")


def component(program):
    """A program of the control plane, killed."""

    def strike(_random, _pods):
        pkill(f"^/bin/{program} .*/home/alice/.hpk/")

    return strike


def kubelet_killed(_random, _pods):
    pkill("^/home/alice/.local/bin/hpk-kubelet ")


def kubelet_stopped(random, _pods):
    pkill("^/home/alice/.local/bin/hpk-kubelet ", "STOP")
    time.sleep(random.uniform(2, 12))
    pkill("^/home/alice/.local/bin/hpk-kubelet ", "CONT")


def member_killed(_random, _pods):
    pkill("hpk-netns member /home/alice/.hpk")


def up():
    """`hpk up`, which must succeed."""
    done = alice("hpk up")
    if done.returncode != 0:
        raise SystemExit(f"hpk up failed: {done.stderr}")


def supervisor_killed(_random, _pods):
    pkill("^/home/alice/.local/bin/hpk supervise")
    up()


def down_and_up(_random, _pods):
    alice("hpk down >/dev/null 2>&1")
    up()


def two_ups(_random, _pods):
    alice("hpk up >/dev/null 2>&1 & hpk up >/dev/null 2>&1; wait")
    up()


def controller_stopped(random, _pods):
    """slurmctld does not answer, in part for longer than sbatch waits (MessageTimeout)."""
    sx("login", "sh", "-c", "kill -STOP $(cat /run/slurm/slurmctld.pid)")
    time.sleep(random.uniform(3, 14))
    sx("login", "sh", "-c", "kill -CONT $(cat /run/slurm/slurmctld.pid)")


def accounting_stopped(random, _pods):
    sx("login", "pkill", "-STOP", "-x", "slurmdbd")
    time.sleep(random.uniform(3, 14))
    sx("login", "pkill", "-CONT", "-x", "slurmdbd")


def node_daemon_stopped(random, _pods):
    node = random.choice(NODES)
    sx(node, "pkill", "-STOP", "-x", "slurmd")
    time.sleep(random.uniform(2, 10))
    sx(node, "pkill", "-CONT", "-x", "slurmd")


def pods_unreadable(random, _pods):
    """A stale handle, a late automounter: the kubelet starts meanwhile."""
    alice("chmod 000 ~/.hpk/pods; pkill -KILL -x hpk-kubelet")
    time.sleep(random.uniform(2, 6))
    alice("chmod 700 ~/.hpk/pods")


def record_garbled(random, pods):
    """A record that is no JSON, found at the kubelet's start."""
    uid = random.choice(pods)["uid"] if pods else None
    if uid:
        alice(
            f"test -e ~/.hpk/pods/{uid}/kubelet.json && echo '{{' > ~/.hpk/pods/{uid}/kubelet.json; pkill -KILL -x hpk-kubelet"
        )


def link_cut(random, _pods):
    """One node's packets to the kubelet are lost."""
    node = random.choice(NODES)
    port = alice("jq -r .link_addr ~/.hpk/cluster.json").stdout.strip().rsplit(":", 1)[-1]
    rules = f"table inet chaos {{ chain out {{ type filter hook output priority 0; tcp dport {port} drop; }} }}"
    sx(node, "nft", "-f", "-", text=rules)
    time.sleep(random.uniform(3, 15))
    sx(node, "nft", "delete table inet chaos")


def job_cancelled(random, pods):
    victim = random.choice(pods) if pods else None
    if victim:
        victim["struck"] = True
        alice(f"scancel $(squeue -h -O jobid:20,comment:50 | grep {victim['uid']} | cut -d' ' -f1)")


def processes_killed(program):
    """A process of one pod on its node."""

    def strike(random, pods):
        victim = random.choice(pods) if pods else None
        if not victim:
            return
        victim["struck"] = True
        found = alice(f"squeue -h -O jobid:20,comment:50,nodelist:20 | grep {victim['uid']}").stdout.split()
        if len(found) == 3 and found[2] in NODES:
            job, node = found[0], found[2]
            kill = f"for p in $(scontrol listpids {job} | awk 'NR>1{{print $1}}'); do [ \"$(cat /proc/$p/comm)\" = {program} ] && kill -KILL $p; done"
            sx(node, "sh", "-c", kill)

    return strike


KINDS = {
    "etcd killed": component("etcd"),
    "API server killed": component("kube-apiserver"),
    "controller manager killed": component("kube-controller-manager"),
    "scheduler killed": component("kube-scheduler"),
    "CoreDNS killed": component("coredns"),
    "kubelet killed": kubelet_killed,
    "kubelet stopped": kubelet_stopped,
    "member killed": member_killed,
    "hpk supervise killed": supervisor_killed,
    "hpk down, hpk up": down_and_up,
    "two hpk up": two_ups,
    "slurmctld stopped": controller_stopped,
    "slurmdbd stopped": accounting_stopped,
    "slurmd stopped": node_daemon_stopped,
    "pods' folder unreadable": pods_unreadable,
    "record garbled": record_garbled,
    "link cut": link_cut,
    "job cancelled": job_cancelled,
    "hpk-pause killed": processes_killed("hpk-pause"),
    "hpk-netns killed": processes_killed("hpk-netns"),
}

# For a campaign of a minute: one of each wall that holds pods and jobs together.
SHORT = ("kubelet killed", "API server killed", "slurmctld stopped", "record garbled", "hpk-pause killed", "link cut")
