#!/usr/bin/env python3
"""Writes the images of upstream's end-to-end tests as OCI layouts.

  images.py PROGRAMS COREDNS BUSYBOX OUT

PROGRAMS is the folder that programs.sh printed, COREDNS the control plane's program, BUSYBOX that of the example image (the
one of an older Debian crashes in `wget -T`). Everything else comes from Debian packages of this machine:
a program is taken with the libraries that ldd names, so an image holds what it needs and no distribution.
Layers are tar files written here: owners, modes and set-user-ID bits are exact and no privilege is needed.
"""

import glob
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile

PROGRAMS, COREDNS, BUSYBOX, OUT = sys.argv[1:5]
PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'


class Tree:
    """The content of one layer; a path written twice keeps its last content."""

    def __init__(self):
        self.entries = {}

    def put(self, path, data=b'', mode=0o644, kind=tarfile.REGTYPE, target=''):
        parent = os.path.dirname(path)
        if parent and parent not in self.entries:
            self.folder(parent)
        info = tarfile.TarInfo(path)
        info.mode, info.type, info.linkname, info.size = mode, kind, target, len(data)
        self.entries[path] = (info, data)

    def has(self, path):
        return path in self.entries

    def folder(self, path, mode=0o755):
        self.put(path, mode=mode, kind=tarfile.DIRTYPE)

    def symlink(self, path, target):
        self.put(path, mode=0o777, kind=tarfile.SYMTYPE, target=target)

    def copy(self, source, path, mode=None):
        with open(source, 'rb') as f:
            self.put(path, f.read(), mode or stat.S_IMODE(os.stat(source).st_mode))

    def program(self, source, path=None):
        """A dynamic program, its libraries and its loader."""
        self.copy(os.path.realpath(source), path or 'usr/bin/' + os.path.basename(source), 0o755)
        listing = subprocess.run(['ldd', source], capture_output=True, text=True).stdout
        for library in re.findall(r'(/\S+) \(0x', listing):
            where = library if library.startswith('/lib64/') else '/lib/' + os.path.basename(library)
            self.copy(os.path.realpath(library), where.lstrip('/'), 0o755)

    def layer(self):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode='w', format=tarfile.GNU_FORMAT) as tar:
            for path in sorted(self.entries):
                info, data = self.entries[path]
                tar.addfile(info, io.BytesIO(data))
        return raw.getvalue()


def found(name):
    path = shutil.which(name, path=PATH)
    return path or sys.exit(
        f'images.py: no program {name} here: install the packages that tests/conformance/run.sh names'
    )


def busybox(users='', groups=''):
    tree = Tree()
    for folder in 'dev etc home lib lib64 proc root sys usr/local/bin usr/local/sbin usr/sbin var/log var/run'.split():
        tree.folder(folder)
    tree.folder('tmp', 0o1777)
    tree.folder('var/tmp', 0o1777)
    program = BUSYBOX
    tree.copy(program, 'bin/busybox', 0o755)
    for applet in subprocess.run([program, '--list'], capture_output=True, text=True).stdout.split():
        if applet != 'busybox':
            tree.symlink('bin/' + applet, 'busybox')
    if not tree.has('bin/printenv'):
        tree.program(found('printenv'))
    tree.put('etc/passwd', ('root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' + users).encode())
    tree.put('etc/group', ('root:x:0:\nnogroup:x:65534:\n' + groups).encode())
    tree.put('etc/nsswitch.conf', b'passwd: files\ngroup: files\nhosts: files dns\n')
    # Debian builds a busybox whose sh keeps variables from its children whose names hold a dash or a dot. Tests that look for
    # them start `sh` by the PATH and get bash, which hands them on; tests that read sh's own messages start /bin/sh.
    tree.program(found('bash'))
    tree.symlink('usr/local/bin/sh', '/usr/bin/bash')
    for library in glob.glob('/lib/*-linux-gnu/libnss_*.so.2'):
        tree.copy(os.path.realpath(library), 'lib/' + os.path.basename(library), 0o755)
    return tree


# Upstream's image has iperf 2.2, whose reports have names above them and more fields than Debian's 2.1.
IPERF = b'''#!/bin/bash
set -o pipefail
case " $* " in
*" --reportstyle C "*)
  echo time,srcaddress,srcport,dstaddr,dstport,transferid,istart,iend,bytes,speed,writecnt,writeerr,tcpretry,tcpcwnd,tcppcwnd,tcprtt,tcprttvar
  /usr/bin/iperf "$@" | awk -F, 'NF >= 9 { split($7, at, "-"); print $1","$2","$3","$4","$5","$6","at[1]","at[2]","$8","$9",-1,-1,-1,-1,-1,0,0" }'
  ;;
*) exec /usr/bin/iperf "$@" ;;
esac
'''


def network_tools():
    """agnhost's base: a shell that is no busybox (whose sh runs applets before programs of the PATH)."""
    tree = busybox(
        'user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n',
        'user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n',
    )
    for name in 'curl dig getent ip iperf ipcmk ipcrm ipcs lscpu nc nsenter socat unshare'.split():
        tree.program(found(name))
    for link, target in {'bin/bash': 'bash', 'bin/sh': 'bash', 'bin/nc': 'nc', 'bin/ip': 'ip'}.items():
        tree.symlink(link, '/usr/bin/' + target)
    # Upstream's are built on Alpine: a test of image volumes looks for its name.
    tree.put('etc/os-release', b'NAME="stand-in for Alpine Linux"\n')
    tree.put('usr/local/bin/iperf', IPERF, 0o755)
    tree.folder('uploads')
    return tree


def pause():
    tree = Tree()
    tree.copy(PROGRAMS + '/pause', 'pause', 0o755)
    tree.put('etc/passwd', b'root:x:0:0:root:/root:/bin/sh\n')
    return tree


def served_registry():
    """/var/registry, from which agnhost's fake-registry-server hands out pause:testing."""
    tree, kind = Tree(), 'application/vnd.docker.distribution.manifest'

    def store(folder, data):
        digest = hashlib.sha256(data).hexdigest()
        tree.put(f'var/registry/pause/{folder}/sha256/{digest[:2]}/{digest}/data', data)
        return {'digest': 'sha256:' + digest, 'size': len(data)}

    raw = pause().layer()
    layer = store('blobs', gzip.compress(raw, 1, mtime=0))
    config = store(
        'blobs',
        json.dumps(
            {
                'architecture': 'amd64',
                'os': 'linux',
                'config': {'Entrypoint': ['/pause']},
                'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + hashlib.sha256(raw).hexdigest()]},
            }
        ).encode(),
    )
    manifest = store(
        'manifests',
        json.dumps(
            {
                'schemaVersion': 2,
                'mediaType': kind + '.v2+json',
                'config': dict(config, mediaType='application/vnd.docker.container.image.v1+json'),
                'layers': [dict(layer, mediaType='application/vnd.docker.image.rootfs.diff.tar.gzip')],
            }
        ).encode(),
    )
    index = store(
        'manifests',
        json.dumps(
            {
                'schemaVersion': 2,
                'mediaType': kind + '.list.v2+json',
                'manifests': [
                    dict(manifest, mediaType=kind + '.v2+json', platform={'architecture': 'amd64', 'os': 'linux'})
                ],
            }
        ).encode(),
    )
    tree.put('var/registry/pause/manifests/testing', (index['digest'] + '\n').encode())
    return tree


def agnhost():
    tree = served_registry()
    tree.copy(PROGRAMS + '/agnhost', 'agnhost', 0o755)
    tree.symlink('agnhost-2', 'agnhost')
    tree.copy(COREDNS, 'coredns', 0o755)
    for name in ('localhost.crt', 'localhost.key'):
        tree.copy(f'{PROGRAMS}/data/{name}', name, 0o644)
    return tree


def pages(name):
    tree = Tree()
    for page in glob.glob(f'{PROGRAMS}/data/{name}/*'):
        tree.copy(page, os.path.basename(page), 0o644)
    return tree


NGINX = b'''worker_processes 1;
error_log /dev/stderr notice;
pid /tmp/nginx.pid;
events { worker_connections 512; }
http {
  access_log /dev/stdout;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server { listen 80; location / { root /usr/share/nginx/html; } }
}
'''


def nginx(version):
    """The Debian package's server; the tests only look for its greeting."""
    unpacked = os.path.join(OUT, 'nginx-package')
    if not os.path.exists(unpacked + '/usr/sbin/nginx'):
        os.makedirs(unpacked, exist_ok=True)
        subprocess.run(['apt-get', 'download', '-qq', 'nginx'], cwd=unpacked, check=True, stderr=subprocess.DEVNULL)
        for package in glob.glob(unpacked + '/*.deb'):
            subprocess.run(['dpkg', '-x', package, unpacked], check=True)
    tree = busybox('nginx:x:101:101::/nonexistent:/bin/false\n', 'nginx:x:101:\n')
    tree.program(unpacked + '/usr/sbin/nginx', 'usr/sbin/nginx')
    tree.put('etc/nginx/nginx.conf', NGINX)
    tree.put(
        'usr/share/nginx/html/index.html', b'<html><title>Welcome to nginx!</title><h1>Welcome to nginx!</h1></html>\n'
    )
    tree.put('etc/nginx/version', version.encode())
    return tree


def single(path, source, mode=0o755):
    tree = Tree()
    tree.copy(source, path, mode)
    return tree


def etcd():
    tree = Tree()
    tree.program(found('etcd'), 'usr/local/bin/etcd')
    return tree


def images():
    """name:tag, as the tests ask for them -> layers, config"""
    base, tools, host = busybox(), network_tools(), agnhost()
    ports = {f'{port}/tcp': {} for port in (80, 5000, 8080, 8081, 9376)}
    run_agnhost = {'Entrypoint': ['/agnhost'], 'Cmd': ['pause'], 'ExposedPorts': ports}
    web = {'Cmd': ['/usr/sbin/nginx', '-g', 'daemon off;'], 'ExposedPorts': {'80/tcp': {}}, 'StopSignal': 'SIGQUIT'}
    shell = {'Cmd': ['sh']}
    test = 'e2e-test-images/'
    yield test + 'agnhost:2.66.1', [tools, host], run_agnhost
    yield test + 'agnhost:2.55', [tools, host], run_agnhost
    yield test + 'busybox:1.37.0-2', [base], shell
    yield test + 'busybox:1.36.1-1', [base], shell
    yield test + 'nginx:1.27.0-2', [nginx('1.27')], web
    yield test + 'nginx:1.28.0-2', [nginx('1.28')], web
    yield test + 'nonewprivs:1.4', [base, single('usr/local/bin/nnp', PROGRAMS + '/nnp', 0o6755)], {'Cmd': ['nnp']}
    yield test + 'nonroot:1.5', [base], dict(shell, User='1234')
    yield test + 'ipc-utils:1.4', [tools], shell
    yield test + 'glibc-dns-testing:2.1.1', [tools], {'Cmd': ['bash']}
    for name in ('nautilus', 'kitten'):
        yield test + name + ':1.8', [tools, host, pages(name)], dict(run_agnhost, Cmd=['test-webserver'])
    yield (
        test + 'sample-apiserver:1.29.2',
        [base, single('sample-apiserver', PROGRAMS + '/sample-apiserver')],
        {'Entrypoint': ['/sample-apiserver']},
    )
    yield 'pause:3.10.2', [pause()], {'Entrypoint': ['/pause'], 'User': '65535:65535'}
    yield 'etcd:3.7.0-0', [base, etcd()], {}


def write(name, layers, config):
    layout = os.path.join(OUT, re.sub('[/:]', '_', name))
    shutil.rmtree(layout, ignore_errors=True)
    os.makedirs(layout + '/blobs/sha256')
    kind = 'application/vnd.oci.image.'

    def store(data, media):
        digest = hashlib.sha256(data).hexdigest()
        with open(f'{layout}/blobs/sha256/{digest}', 'wb') as f:
            f.write(data)
        return {'mediaType': kind + media, 'digest': 'sha256:' + digest, 'size': len(data)}

    raws = [tree.layer() for tree in layers]
    stored = [store(gzip.compress(raw, 1, mtime=0), 'layer.v1.tar+gzip') for raw in raws]
    config = store(
        json.dumps(
            {
                'architecture': 'amd64',
                'os': 'linux',
                'config': {'Env': ['PATH=' + PATH], 'WorkingDir': '/', **config},
                'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + hashlib.sha256(raw).hexdigest() for raw in raws]},
            }
        ).encode(),
        'config.v1+json',
    )
    manifest = store(
        json.dumps(
            {'schemaVersion': 2, 'mediaType': kind + 'manifest.v1+json', 'config': config, 'layers': stored}
        ).encode(),
        'manifest.v1+json',
    )
    with open(layout + '/index.json', 'w') as f:
        json.dump({'schemaVersion': 2, 'manifests': [manifest]}, f)
    with open(layout + '/oci-layout', 'w') as f:
        json.dump({'imageLayoutVersion': '1.0.0'}, f)
    with open(layout + '/name', 'w') as f:
        print(name, file=f)


os.makedirs(OUT, exist_ok=True)
for image in images():
    write(*image)
