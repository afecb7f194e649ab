# Sourced by the scripts that make images and the site: the cache of expensive
# products, progress lines, and Debian trees. It runs nothing by itself.
#
# HPK_CACHE (default ${XDG_CACHE_HOME:-$HOME/.cache}/hpk) holds every product
# that takes time to make, outside the checkout, in folders named by content.

HPK_CACHE=${HPK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hpk}
export HPK_CACHE
mkdir -p "$HPK_CACHE"

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# Progress goes to standard error (standard output is for products' paths), in
# seconds since the first script of a run started.
PHASE_START=${PHASE_START:-$EPOCHSECONDS}
export PHASE_START
phase() { printf '[%4d s] %s\n' $((EPOCHSECONDS - PHASE_START)) "$*" >&2; }

# key_of FILE...: 16 hex digits that change when any file's content does.
key_of() { cat -- "$@" | sha256sum | cut -c1-16; }

# locked DIR: makes DIR and holds its lock until this script ends, so that two
# callers never make one product twice.
locked() { mkdir -p "$1"; exec 9>"$1/lock"; flock 9; }

# need COMMAND PACKAGE: installs a Debian package if the command is absent.
need() {
  command -v "$1" >/dev/null && return
  [ "$(id -u)" = 0 ] || die "$1 is missing: apt-get install $2"
  phase "installing $2"
  if [ -z "${apt_updated:-}" ]; then apt-get update -q >/dev/null; apt_updated=1; fi
  DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$2" >/dev/null 2>&1 \
    || die "apt-get install $2 failed: run it by hand to see why"
}

# The Debian mirror that this machine's own apt uses.
debian_mirror() {
  local m
  m=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' |
    grep -v security | sort -u | head -n 1)
  if [ -z "$m" ]; then
    apt-get update -q >/dev/null
    m=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' |
      grep -v security | sort -u | head -n 1)
  fi
  [ -n "$m" ] || die "apt knows no Debian mirror (no 'main' component in its sources)"
  echo "$m"
}

# apt_setup TREE: this machine's mirror and proxies, no recommended packages,
# no documentation, no daemons started. Apptainer alone may come from unstable
# (Debian 13 has none), whose Release file can be past its date.
apt_setup() {
  local r=$1 m f
  m=$(debian_mirror)
  cat >"$r/etc/apt/sources.list" <<X
deb $m trixie main
deb $m trixie-updates main
deb [check-valid-until=no] $m sid main
X
  cat >"$r/etc/apt/preferences.d/sid" <<X
Package: *
Pin: release a=unstable
Pin-Priority: 100

Package: apptainer
Pin: release a=unstable
Pin-Priority: 990
X
  printf 'APT::Install-Recommends "false";\nAcquire::Languages "none";\n' >"$r/etc/apt/apt.conf.d/99lean"
  printf 'path-exclude=/usr/share/%s/*\n' doc man locale info lintian >"$r/etc/dpkg/dpkg.cfg.d/lean"
  echo force-unsafe-io >>"$r/etc/dpkg/dpkg.cfg.d/lean"
  printf '#!/bin/sh\nexit 101\n' >"$r/usr/sbin/policy-rc.d"
  chmod +x "$r/usr/sbin/policy-rc.d"
  for f in /etc/apt/apt.conf.d/*[Pp]roxy*; do
    if [ -e "$f" ]; then cp "$f" "$r/etc/apt/apt.conf.d/"; fi
  done
}

# in_tree TREE CMD...: runs CMD with TREE as its root, with /proc and this
# machine's resolver. A mount namespace of its own: nothing stays mounted.
in_tree() {
  local r=$1
  shift
  cp -L /etc/resolv.conf "$r/etc/resolv.conf"
  DEBIAN_FRONTEND=noninteractive unshare --mount --pid --fork sh -c '
    r=$1; shift
    mount -t proc proc "$r/proc"
    exec nice chroot "$r" "$@"' -- "$r" "$@"
}

# in_copy TREE PRODUCT CMD...: as in_tree, but in a throw-away copy of TREE (an
# overlay, PRODUCT.copy) that sees the folder PRODUCT as /product.
in_copy() {
  local r=$1 product=$2 w
  shift 2
  w=$product.copy
  rm -rf "$w"
  mkdir -p "$w"/{upper,work,root}
  overlay "$r" "$w" "$product" "$@" || { rm -rf "$w"; return 1; }
  rm -rf "$w"
}

# changes_of TREE UPPER CMD...: as in_copy, and keeps what CMD added or changed
# in UPPER. Deletions are not kept: they would need whiteouts.
changes_of() {
  local r=$1 upper=$2 w
  shift 2
  w=$upper.copy
  rm -rf "$w"
  mkdir -p "$w"/{upper,work,root,product}
  overlay "$r" "$w" "$w/product" "$@" || { rm -rf "$w"; return 1; }
  find "$w/upper" -type c -delete
  rmdir "$w/upper/product" 2>/dev/null || true
  cp -a "$w/upper/." "$upper/"
  rm -rf "$w"
}

# overlay TREE WORK PRODUCT CMD...: CMD in TREE with WORK/upper above it.
overlay() {
  local r=$1 w=$2 product=$3
  shift 3
  DEBIAN_FRONTEND=noninteractive unshare --mount --pid --fork sh -c '
    set -e
    lower=$1 w=$2 product=$3; shift 3
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$w/upper,workdir=$w/work" "$w/root"
    mkdir -p "$w/root/product"
    mount --bind "$product" "$w/root/product"
    cp -L /etc/resolv.conf "$w/root/etc/resolv.conf"
    mount -t proc proc "$w/root/proc"
    exec nice chroot "$w/root" "$@"' -- "$r" "$w" "$product" "$@"
}
