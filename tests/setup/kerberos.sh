#!/bin/sh
# kerberos.sh: a KDC, and popproxy's extra for Kerberos, for the demonstration. Never fails: it goes on without.
set -eu
cd "$(dirname "$0")/../.."
. tests/setup/common.sh

without() { say "$*; the demonstration goes on without Kerberos"; exit 0; }

python=.venv/bin/python
packages="krb5-kdc krb5-admin-server krb5-user"
# python-gssapi comes as source only: it is compiled against the Kerberos libraries of the system.
"$python" -c 'import gssapi' 2>/dev/null || packages="$packages gcc libkrb5-dev python3-dev"

# shellcheck disable=SC2086
command -v apt-get >/dev/null && missing=$(missing_packages $packages | tr '\n' ' ') || missing=
if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
        without "this needs root: apt-get install $missing"
    fi
    # shellcheck disable=SC2086
    (install_packages $missing) >&2 || without "could not install $missing"
fi
"$python" -c 'import gssapi' 2>/dev/null || {
    say "installing what popproxy needs for Kerberos"
    "$python" -m pip install -q --disable-pip-version-check -e '.[kerberos]' >&2 || without "could not install the extra kerberos"
}
