#!/usr/bin/env python3
"""Time from the creation of a claim until a watch sees it Bound: one at a time, and a hundred at once.

Runs as alice on the site's login node. Connections to the API server stand before the clock starts.
"""

import json
import statistics
import threading
import time

from apiserver import Server, call

ONE, MANY, SENDERS = 20, 100, 8
NAMESPACE = "bench-claims"
PATH = "/api/v1/namespaces/%s/persistentvolumeclaims" % NAMESPACE


def create(connection, name):
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    connection.request("POST", PATH, json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    if reply.status >= 300:
        raise RuntimeError("%d %s" % (reply.status, text[:300]))


class Bound(threading.Thread):
    """Notes when each claim is first seen Bound."""

    def __init__(self, api):
        super().__init__(daemon=True)
        connection = api.connect()
        connection.request("GET", PATH + "?watch=true")
        self.reply = connection.getresponse()
        self.at, self.changed = {}, threading.Condition()
        self.start()

    def run(self):
        for line in self.reply:
            claim = json.loads(line)["object"]
            if claim.get("status", {}).get("phase") == "Bound":
                with self.changed:
                    self.at.setdefault(claim["metadata"]["name"], time.time())
                    self.changed.notify_all()

    def wait(self, names):
        with self.changed:
            if not self.changed.wait_for(lambda: all(name in self.at for name in names), 120):
                raise RuntimeError("not bound: %s" % [name for name in names if name not in self.at])
            return [self.at[name] for name in names]


def main():
    call("kubectl", "create", "namespace", NAMESPACE)
    try:
        api = Server()
        bound = Bound(api)
        senders = [api.connect() for _ in range(SENDERS)]
        single = []
        for number in range(ONE):
            name = "one-%d" % number
            began = time.time()
            create(senders[0], name)
            single.append(bound.wait([name])[0] - began)
        names = ["many-%d" % number for number in range(MANY)]

        def send(number):
            for name in names[number::SENDERS]:
                create(senders[number], name)

        began = time.time()
        threads = [threading.Thread(target=send, args=(number,)) for number in range(SENDERS)]
        for thread in threads:
            thread.start()
        last = max(bound.wait(names)) - began
    finally:
        call("kubectl", "delete", "namespace", NAMESPACE, "--wait=false")
    print("## Claims\n")
    print("From the creation of a claim of class hpk-home until a watch sees it Bound.\n")
    print("| | median | slowest |")
    print("|---|---|---|")
    print(
        "| one claim (of %d, one after the other) | %.0f ms | %.0f ms |"
        % (ONE, 1000 * statistics.median(single), 1000 * max(single))
    )
    print("| %d claims at once, the last of them | %.2f s | |" % (MANY, last))


main()
