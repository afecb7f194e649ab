#!/bin/bash
# Lints of what is not Rust: all shell scripts by shellcheck, all Python programs by ruff.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../images/lib.sh"
cd "$here/.."

need shellcheck shellcheck
mapfile -t scripts < <(git ls-files | while read -r file; do
  case $file in
    *.sh) echo "$file" ;;
    *) if head -n 1 "$file" 2>/dev/null | grep -aq '^#!.*sh$'; then echo "$file"; fi ;;
  esac
done)
shellcheck --shell=bash "${scripts[@]}"

# ruff of a fixed version, since another one may know other rules; kept in HPK_CACHE.
version=0.17.5
ruff=$HPK_CACHE/tools/ruff-$version/bin/ruff
if [ ! -x "$ruff" ]; then
  command -v python3 >/dev/null || die "python3 is missing: apt-get install python3 python3-venv"
  phase "installing ruff $version"
  python3 -m venv "$HPK_CACHE/tools/ruff-$version" >&2 || die "python3 makes no venv: apt-get install python3-venv"
  "$HPK_CACHE/tools/ruff-$version/bin/pip" --quiet install "ruff==$version" >&2
fi
mapfile -t programs < <(git ls-files '*.py')
"$ruff" check --quiet --no-cache "${programs[@]}"
"$ruff" format --quiet --no-cache --check "${programs[@]}"
