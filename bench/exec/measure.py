#!/usr/bin/env python3
"""How long `kubectl exec POD -- true` takes, and how much of it is ours.

Runs as alice on the site's login node. The floor is what client and API server take by themselves: the same kubectl, the
same command, a pod on a Node of its own whose kubelet is the stand-in below: it takes the WebSocket and says "Success" at
once, with no pod, no link and no process behind it. A Node that declares ExtendWebSocketsToKubelet gets what kubectl sent,
so the stand-in speaks what hpk-kubelet speaks. Both take turns, so both see the same machine.
"""

import argparse
import base64
import hashlib
import json
import os
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time

HOME = os.path.expanduser("~")
PKI = os.path.join(HOME, ".hpk", "pki")
NAMESPACE = "bench-exec"
STAND_IN = "bench-stand-in"


def kubectl(*args, text=None):
    return subprocess.run(("kubectl", *args), check=True, capture_output=True, text=True, input=text).stdout


def patch_status(kind, name, status):
    kubectl(
        "-n",
        NAMESPACE,
        "patch",
        kind,
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )


def recv_exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def answer(raw, context):
    """One connection: the WebSocket's handshake, "Success" on the error channel, the closing handshake."""
    try:
        with context.wrap_socket(raw, server_side=True) as stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += stream.recv(4096)
            fields = dict(
                (k.strip().lower(), v.strip())
                for k, _, v in (line.partition(":") for line in head.decode().split("\r\n")[1:])
            )
            key = fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            stream.sendall(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n".encode()
            )
            status = b"\x03" + json.dumps({"metadata": {}, "status": "Success"}).encode()
            stream.sendall(bytes((0x82, len(status))) + status + b"\x88\x02\x03\xe8")
            # The client's closing frame.
            while True:
                first, length = recv_exactly(stream, 2)
                length &= 0x7F
                if length == 126:
                    (length,) = struct.unpack(">H", recv_exactly(stream, 2))
                recv_exactly(stream, 4 + length)
                if first & 0xF == 8:
                    return
    except (EOFError, OSError):
        pass


def serve(address):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.path.join(PKI, "kubelet-server.crt"), os.path.join(PKI, "kubelet-server.key"))
    listener = socket.create_server((address, 0), backlog=64)

    def accept():
        while True:
            raw, _ = listener.accept()
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(raw, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def pod(name, **spec):
    container = {"name": "main", "image": "login:5000/busybox:1", "command": ["sleep", "infinity"]}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def set_up():
    real = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]
    address = next(a["address"] for a in real["status"]["addresses"] if a["type"] == "InternalIP")
    port = serve(address)
    kubectl("create", "namespace", NAMESPACE)
    kubectl("-n", NAMESPACE, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": STAND_IN}, "spec": {"unschedulable": True}}
    kubectl("create", "-f", "-", text=json.dumps(node))
    patch_status(
        "node",
        STAND_IN,
        {
            "addresses": [{"type": "InternalIP", "address": address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "declaredFeatures": ["ExtendWebSocketsToKubelet"],
        },
    )
    kubectl("create", "-f", "-", text=json.dumps(pod("stand-in", nodeName=STAND_IN)))
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    container = {
        "name": "main",
        "image": "x",
        "imageID": "x",
        "containerID": "x://x",
        "ready": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": started}},
    }
    patch_status("pod", "stand-in", {"phase": "Running", "containerStatuses": [container]})
    kubectl("create", "-f", "-", text=json.dumps(pod("real")))
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/real", "--timeout=120s")


def tear_down():
    for args in (
        ("-n", NAMESPACE, "delete", "pod", "stand-in", "--grace-period=0", "--force", "--ignore-not-found"),
        ("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"),
        ("delete", "node", STAND_IN, "--ignore-not-found"),
    ):
        subprocess.run(("kubectl", *args), capture_output=True, check=False)


def timed(*args):
    began = time.monotonic()
    done = subprocess.run(("kubectl", *args), capture_output=True, text=True, check=False)
    took = (time.monotonic() - began) * 1e3
    if done.returncode:
        sys.exit("kubectl %s: %s" % (" ".join(args), done.stderr))
    return took


def shown(values):
    return "%.0f ms (%.0f–%.0f)" % (statistics.median(values), min(values), max(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    tear_down()
    subprocess.run(
        ("kubectl", "wait", "--for=delete", "namespace/" + NAMESPACE, "--timeout=60s"), capture_output=True, check=False
    )
    set_up()
    kinds = {
        "ours": ("-n", NAMESPACE, "exec", "real", "--", "true"),
        "stand-in": ("-n", NAMESPACE, "exec", "stand-in", "--", "true"),
        "healthz": ("get", "--raw", "/healthz"),
    }
    try:
        found = {name: [] for name in kinds}
        for turn in range(rounds + 2):
            for name, args in kinds.items():
                took = timed(*args)
                # Certificates, connections and caches of the first rounds are not in the figures.
                if turn >= 2:
                    found[name].append(took)
    finally:
        tear_down()
    more = statistics.median(a - b for a, b in zip(found["ours"], found["stand-in"]))
    print("## exec (`exec`)\n")
    print("| | | |\n|---|---|---|")
    print("| `kubectl exec POD -- true`, median of %d | %s | |" % (rounds, shown(found["ours"])))
    print("| the same with a stand-in kubelet that says Success at once | %s | |" % shown(found["stand-in"]))
    print("| ours beyond it, median of differences round by round | %.1f ms | goal ≤ 30 ms |" % more)
    print("| `kubectl get --raw /healthz` | %s | |" % shown(found["healthz"]))


main()
