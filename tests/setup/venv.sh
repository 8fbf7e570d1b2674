#!/bin/sh
# venv.sh runtime|development: popproxy in .venv, with the tools for development or without. Done once per
# pyproject.toml, interpreter and place; needs no network after that.
set -eu
cd "$(dirname "$0")/../.."
. tests/setup/common.sh

python=${PYTHON:-python3}
kind=$1

command -v "$python" >/dev/null || die "$python is not here; install Python 3.11 or newer, or say make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" -V) is too old; popproxy needs 3.11 or newer: make PYTHON=/path/to/python3.11"

base=$("$python" -c 'import sys; print(sys.base_prefix, "%d.%d" % sys.version_info[:2])')
key=$({ echo "$PWD $base"; cat pyproject.toml; } | sha256sum | cut -c1-16)
stamp=.venv/.installed-$kind-$key
[ ! -e "$stamp" ] || exit 0

if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    [ "$("$python" -c 'import sys; print(sys.base_prefix)')" = /usr ] || die "$python has no venv module; take another with make PYTHON=/path/to/python3"
    install_packages python3-venv
fi

# A virtual environment that was moved, or whose interpreter has gone or is another, is of no use any more.
found=$(.venv/bin/python -c 'import sys; print(sys.prefix, sys.base_prefix, "%d.%d" % sys.version_info[:2])' 2>/dev/null || :)
if [ "$found" != "$PWD/.venv $base" ] || ! .venv/bin/python -m pip -V >/dev/null 2>&1; then
    say "making .venv with $("$python" -V)"
    "$python" -m venv --clear .venv
fi

# python-gssapi and bonsai come as source only: they are compiled against the Kerberos and LDAP libraries of the system.
if [ "$kind" = development ] && command -v apt-get >/dev/null; then
    missing=$(missing_packages gcc libkrb5-dev libldap-dev libsasl2-dev python3-dev | tr '\n' ' ')
    # shellcheck disable=SC2086
    [ -z "$missing" ] || install_packages $missing
fi

say "installing popproxy and what it needs ($kind)"
case $kind in
runtime) what=. ;;
development) what=".[dev]" ;;
*) die "usage: venv.sh runtime|development" ;;
esac
.venv/bin/python -m pip install -q --disable-pip-version-check -e "$what"
rm -f .venv/.installed-"$kind"-*
touch "$stamp"
[ "$kind" = runtime ] || touch ".venv/.installed-runtime-$key"
