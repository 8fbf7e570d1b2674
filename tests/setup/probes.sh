#!/bin/sh
# probes.sh: what tests/setup/probes.txt names in .venv/probes. Done once for each change of that file or of .venv.
set -eu
cd "$(dirname "$0")/../.."
. tests/setup/common.sh

stamp=.venv/probes/.installed-$(sha256sum < tests/setup/probes.txt | cut -c1-16)
[ ! -e "$stamp" ] || exit 0
say "installing what examines TLS into .venv/probes"
.venv/bin/python -m venv --clear .venv/probes
.venv/probes/bin/python -m pip install -q --disable-pip-version-check -r tests/setup/probes.txt
touch "$stamp"
