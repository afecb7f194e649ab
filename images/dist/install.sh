#!/bin/bash
# Puts HPK below a folder of yours. It changes nothing else, needs no root, and
# can be run again: a newer version replaces an older one.
#
#   ./install.sh [PREFIX]      PREFIX: default ~/.local, or $PREFIX
#
# Afterwards: hpk doctor, then hpk up. `hpk uninstall` removes what this has put.
set -euo pipefail
die() { echo "install.sh: $*" >&2; exit 1; }
case ${1:-} in
  -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
  -*) die "unknown option $1 (see --help)" ;;
esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
prefix=${1:-${PREFIX:-${HOME:?HOME is not set: name a folder, ./install.sh DIR}/.local}}
[ "$(uname -m)" = x86_64 ] || die "this file is for x86_64, and this machine is $(uname -m)"

echo "checking sums" >&2
(cd "$here" && sha256sum --quiet --check SHA256SUMS) || die "a file is not as it was packed: fetch the archive again"
mkdir -p "$prefix" || die "$prefix cannot be made: name a folder of yours, ./install.sh DIR"
prefix=$(cd "$prefix" && pwd)

echo "installing to $prefix" >&2
old=$prefix/share/hpk/installed
gone=
[ ! -e "$old" ] || gone=$(LC_ALL=C comm -23 "$old" "$here/root/share/hpk/installed")
# By rename: what runs goes on with what it has.
while IFS= read -r file; do
  mkdir -p "$prefix/$(dirname "$file")"
  cmp -s "$here/root/$file" "$prefix/$file" && continue
  cp -p "$here/root/$file" "$prefix/$file.new"
  mv "$prefix/$file.new" "$prefix/$file"
done <"$here/root/share/hpk/installed"
# A sandbox folder's mount points are empty.
(cd "$here/root" && find share/hpk/pause -type d) | while IFS= read -r folder; do mkdir -p "$prefix/$folder"; done
cp "$here/root/share/hpk/installed" "$old.new"
mv "$old.new" "$old"
[ -z "$gone" ] || (cd "$prefix" && while IFS= read -r file; do rm -f -- "$file"; done <<<"$gone")

case :$PATH: in
  *":$prefix/bin:"*) ;;
  *) echo "add it to your PATH:  export PATH=$prefix/bin:\$PATH" ;;
esac
echo "HPK is installed. Next:
  hpk doctor      can this site run it?
  hpk up          start it"
