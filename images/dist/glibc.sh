#!/bin/bash
# Says which program needs a newer glibc than it should, and fails then.
#
#   glibc.sh VERSION PROGRAM...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"
allowed=${1:?usage: glibc.sh VERSION PROGRAM...}
shift
need objdump binutils
for program; do
  newest=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
  [ -n "$newest" ] || die "$program asks for no glibc: is it the right file?"
  [ "$(printf '%s\n' "$allowed" "$newest" | sort -V | tail -n 1)" = "$allowed" ] ||
    die "$program needs glibc $newest, and should run with $allowed: $(objdump -T "$program" | grep -F "GLIBC_$newest" | head -n 3)"
done
