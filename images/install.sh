#!/bin/bash
# Lays out HPK below a prefix of one's own: programs, the control plane's image
# and the parent image of pods. Files that did not change are left alone; the
# others are replaced by rename, so that a running program is not hurt. Prints the
# names of those that changed, a line each.
#
# share/hpk/installed lists the files, for `hpk uninstall`.
#
#   install.sh PREFIX      from CARGO_TARGET_DIR (PROFILE, default release) and the
#                          control plane's product; HPK_PROGRAMS: a folder to take
#                          the four programs from instead
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"
prefix=${1:?usage: install.sh PREFIX}

profile=${PROFILE:-release}
[ "$profile" = dev ] && profile=debug
target=${CARGO_TARGET_DIR:-$HPK_CACHE/cargo-target}
programs=${HPK_PROGRAMS:-$target/$profile}
static=${HPK_PROGRAMS:-$target/x86_64-unknown-linux-gnu/$profile}
control_plane=$("$here/control-plane/build.sh" ${KUBERNETES_BIN:+--kubernetes-bin "$KUBERNETES_BIN"} | tail -n 1)

put() { # put SOURCE DESTINATION MODE
  [ -e "$1" ] || die "$1 is missing: run make build"
  mkdir -p "$(dirname "$2")"
  cmp -s "$1" "$2" && return
  cp --reflink=auto "$1" "$2.new"
  chmod "$3" "$2.new"
  mv "$2.new" "$2"
  basename "$2"
}
put "$programs/hpk" "$prefix/bin/hpk" 755
put "$programs/hpk-kubelet" "$prefix/bin/hpk-kubelet" 755
put "$control_plane/bin/kubectl" "$prefix/bin/kubectl" 755
put "$static/hpk-pause" "$prefix/libexec/hpk/hpk-pause" 755
put "$static/hpk-netns" "$prefix/libexec/hpk/hpk-netns" 755
put "$control_plane/control-plane.sqfs" "$prefix/share/hpk/control-plane.sqfs" 644
if ! cmp -s "$static/hpk-pause" "$prefix/share/hpk/pause/hpk-pause" || [ "$here/pause/build.sh" -nt "$prefix/share/hpk/pause" ]; then
  "$here/pause/build.sh" "$static/hpk-pause" "$prefix/share/hpk/pause"
fi
# Where shells and man look by themselves when the prefix is ~/.local or the system's.
"$prefix/bin/hpk" manual "$prefix/share/man/man1"
completions() { # completions SHELL DESTINATION
  mkdir -p "$(dirname "$2")"
  "$prefix/bin/hpk" completions "$1" >"$2.new"
  mv "$2.new" "$2"
}
completions bash "$prefix/share/bash-completion/completions/hpk"
completions zsh "$prefix/share/zsh/site-functions/_hpk"
completions fish "$prefix/share/fish/vendor_completions.d/hpk.fish"
# What was put here, for hpk uninstall. The order is the same everywhere.
(
  cd "$prefix"
  find bin/hpk bin/hpk-kubelet bin/kubectl libexec/hpk share/hpk share/man/man1/hpk*.1 \
    share/bash-completion/completions/hpk share/zsh/site-functions/_hpk share/fish/vendor_completions.d/hpk.fish \
    -type f ! -path share/hpk/installed | LC_ALL=C sort >share/hpk/installed.new
  mv share/hpk/installed.new share/hpk/installed
)
