#!/bin/sh
# debian.sh: the mail servers and clients that the tests talk to. Nothing is started, nothing that runs is changed.
set -eu
cd "$(dirname "$0")/../.."
. tests/setup/common.sh

packages=$(sed 's/#.*//' tests/setup/packages.txt | tr -s ' \n' '  ')
peers=.venv/peers
popa3d=$peers/popa3d

# shellcheck disable=SC2086
missing=$(missing_packages $packages | tr '\n' ' ')
# shellcheck disable=SC2086
[ -z "$missing" ] || install_packages $missing

# popa3d conflicts with dovecot-pop3d as a package: it is unpacked, not installed.
if [ ! -x "$popa3d/usr/sbin/popa3d" ]; then
    say "unpacking popa3d"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    (cd "$work" && { apt-get -q download popa3d || { as_root apt-get -q update && apt-get -q download popa3d; }; }) >"$work/log" 2>&1 ||
        { cat "$work/log" >&2; die "could not download the Debian package popa3d"; }
    mkdir -p "$peers"
    rm -rf "$popa3d"
    dpkg -x "$work"/popa3d_*.deb "$work/tree"
    mv "$work/tree" "$popa3d"
fi
