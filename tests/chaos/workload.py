"""The pods of a campaign, and what each of them must have come to.

Every container writes a line into the ledger, a file of its pod on the shared home, when it begins and when it ends. So
the ledger knows what ran, whatever the API server and Slurm have to say of it.
"""

import json

IMAGE = "login:5000/busybox:1"
BEGIN = 'echo "start $JOB $(hostname)" >> /ledger/$POD'
END = 'echo "end $JOB" >> /ledger/$POD'

# name: (script, restartPolicy, phase, exit code). `{seconds}` is how long it works.
KINDS = {
    "succeeds": (f"{BEGIN}; sleep {{seconds}}; {END}", "Never", "Succeeded", 0),
    "fails": (f"{BEGIN}; sleep {{seconds}}; {END}; exit 3", "Never", "Failed", 3),
    "quick": (f"{BEGIN}; {END}", "Never", "Succeeded", 0),
    # Fails once and is started again in its place, by its supervisor.
    "again": (
        f"{BEGIN}; [ -e /own/second ] && {{{{ {END}; exit 0; }}}}; touch /own/second; sleep {{seconds}}; exit 1",
        "OnFailure",
        "Succeeded",
        0,
    ),
    # Ends when it is deleted.
    "deleted": (f"{BEGIN}; trap '{END}; exit 0' TERM; sleep 600 & wait", "Always", None, None),
}


def pod(namespace, name, kind, seconds, ledger):
    """A pod of this kind, as the API takes it."""
    script, restart, _, _ = KINDS[kind]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"chaos": kind}},
        "spec": {
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 5,
            "containers": [
                {
                    "name": "main",
                    "image": IMAGE,
                    "command": ["sh", "-c", script.format(seconds=seconds)],
                    "env": [
                        {"name": "POD", "value": name},
                        {"name": "JOB", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                    ],
                    "resources": {"limits": {"memory": "64Mi", "cpu": "100m"}},
                    "volumeMounts": [
                        {"name": "ledger", "mountPath": "/ledger"},
                        {"name": "own", "mountPath": "/own"},
                    ],
                }
            ],
            "volumes": [
                {"name": "ledger", "hostPath": {"path": ledger, "type": "Directory"}},
                {"name": "own", "emptyDir": {}},
            ],
        },
    }


def begun(kind):
    """How often a container of this kind writes that it begins."""
    return 2 if kind == "again" else 1


class Verdict:
    """What came of one pod: right, killed (a fault killed it, and it says so), lost, doubled or wrong."""

    def __init__(self, kind, found, ledger, jobs, struck, deleted):
        self.kind = kind
        self.text = ""
        starts = sum(line.startswith("start ") for line in ledger)
        ends = sum(line.startswith("end ") for line in ledger)
        status = (found or {}).get("status", {})
        phase = status.get("phase")
        told = json.dumps({"phase": phase, "reason": status.get("reason"), "message": status.get("message")})
        self.text = f"{told}, {starts} starts, {ends} ends, {len(jobs)} jobs {sorted(jobs)}"
        if len(jobs) > 1 or (starts > begun(kind) and kind != "deleted"):
            self.word = "doubled"
        elif deleted:
            self.word = "right" if found is None and starts <= 1 else "wrong"
        elif found is None:
            self.word = "lost"
        elif self.as_it_should(status, starts, ends):
            self.word = "right"
        elif struck and phase == "Failed" and (status.get("message") or status.get("reason")):
            self.word = "killed"
        elif phase in (None, "Pending", "Running"):
            self.word = "stuck"
        else:
            self.word = "wrong"

    def as_it_should(self, status, starts, ends):
        _, _, phase, code = KINDS[self.kind]
        if phase is None:
            return False
        if status.get("phase") != phase or starts != begun(self.kind) or ends != 1:
            return False
        ended = [c.get("state", {}).get("terminated", {}) for c in status.get("containerStatuses", [])]
        return [end.get("exitCode") for end in ended] == [code]
