#!/bin/sh
# debian.sh: the mail servers and clients that the tests talk to. Nothing is started, nothing that runs is changed.
set -eu
cd "$(dirname "$0")/../.."
. tests/setup/common.sh

packages=$(sed 's/#.*//' tests/setup/packages.txt | tr -s ' \n' '  ')
peers=.venv/peers

# shellcheck disable=SC2086
missing=$(missing_packages $packages | tr '\n' ' ')
# shellcheck disable=SC2086
[ -z "$missing" ] || install_packages $missing

# unpack NAME PACKAGE...: packages into a tree of their own, for what cannot be installed beside the rest.
unpack() {
    name=$1
    shift
    key=$(echo "$*" | cksum | tr ' ' -)
    [ ! -e "$peers/$name/.unpacked-$key" ] || return 0
    say "unpacking $*"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    (cd "$work" && { apt-get -q download "$@" || { as_root apt-get -q update && apt-get -q download "$@"; }; }) >"$work/log" 2>&1 ||
        { cat "$work/log" >&2; die "could not download the Debian packages $*"; }
    for archive in "$work"/*.deb; do
        dpkg -x "$archive" "$work/tree"
    done
    touch "$work/tree/.unpacked-$key"
    mkdir -p "$peers"
    rm -rf "${peers:?}/$name"
    mv "$work/tree" "$peers/$name"
    rm -rf "$work"
}

# conflicts with dovecot-pop3d
unpack popa3d popa3d
# conflicts with krb5-kdc; the programs find these libraries through LD_LIBRARY_PATH
unpack heimdal heimdal-kdc heimdal-clients libasn1-8-heimdal libgssapi3-heimdal libhcrypto5-heimdal libhdb9-heimdal \
    libheimbase1-heimdal libheimntlm0-heimdal libhx509-5-heimdal libkadm5clnt7-heimdal libkadm5srv8-heimdal \
    libkafs0-heimdal libkdc2-heimdal libkrb5-26-heimdal libotp0-heimdal libroken19-heimdal libsl0-heimdal \
    libwind0-heimdal
# would bring a whole mail server along
unpack cyrus cyrus-clients cyrus-common libpcre3
# installed, it would want to serve this machine; libwrap0 is all that it needs besides
unpack openssh openssh-server libwrap0
