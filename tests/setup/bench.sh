#!/bin/sh
# bench.sh: what the benchmark needs besides what the tests need: proxies to compare with, and a profiler.
set -eu
cd "$(dirname "$0")/../.."
. tests/setup/common.sh

packages=$(sed 's/#.*//' tests/setup/bench-packages.txt | tr -s ' \n' '  ')
# shellcheck disable=SC2086
missing=$(missing_packages $packages | tr '\n' ' ')
# shellcheck disable=SC2086
[ -z "$missing" ] || install_packages $missing
