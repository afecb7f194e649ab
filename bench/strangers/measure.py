#!/usr/bin/env python3
"""Strangers at one of the kubelet's listeners, and the kubelet's memory meanwhile: one row of a table.

  measure.py PID ADDRESS:PORT nothing|handshake|header [NAME]

Runs as root, becomes bob for the connections. Each stranger sends as much as is taken before anybody knows who it is:
nothing at all, most of the longest TLS record, or a TLS handshake without a certificate and then a request's head without
an end.
"""

import os
import pwd
import socket
import ssl
import sys
import threading
import time

STRANGERS, THREADS = 1500, 16
PID, ADDRESS, KIND = sys.argv[1:4]
NAME = sys.argv[4] if len(sys.argv) > 4 else "kubelet API"
SAYS = dict(nothing="nothing", handshake="16 KiB of a handshake", header="a handshake, then 15 KiB of a request's head")
HEAD = b"GET /pods HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: " % n + b"y" * 1000 + b"\r\n" for n in range(15))


def resident():
    with open(f"/proc/{PID}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def stranger():
    host, port = ADDRESS.rsplit(":", 1)
    s = socket.create_connection((host, int(port)), timeout=2)
    if KIND == "handshake":
        # A record of 16 KiB that holds a ClientHello of the same length, but for its last byte.
        s.sendall(b"\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb\x03\x03" + b"\x00" * (0x3FFF - 7))
    elif KIND == "header":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        s = context.wrap_socket(s)
        s.settimeout(0.3)
        s.sendall(HEAD)
    return s


def many(count, into):
    for _ in range(count):
        try:
            into.append(stranger())
        except OSError:
            pass  # Shown out, or not taken.


before, most, over = resident(), [0.0], threading.Event()


def watch():
    while not over.is_set():
        most[0] = max(most[0], resident())
        time.sleep(0.05)


child = os.fork()
if child == 0:
    bob = pwd.getpwnam("bob")
    os.setgid(bob.pw_gid)
    os.setuid(bob.pw_uid)
    held = []
    threads = [threading.Thread(target=many, args=(STRANGERS // THREADS + 1, held)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(2)
    os._exit(0 if held else 1)
watcher = threading.Thread(target=watch)
watcher.start()
_, status = os.waitpid(child, 0)
over.set()
watcher.join()
if status:
    sys.exit("no connection was made")
time.sleep(20)
print(f"| {SAYS[KIND]} ({NAME}) | {before:.1f} | {most[0]:.1f} (+{most[0] - before:.1f}) | {resident():.1f} |")
