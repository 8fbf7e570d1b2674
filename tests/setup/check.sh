#!/bin/sh
# check.sh: everything that can be said without another program: style, types, layers, unit tests.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PWD/.venv/bin:$PATH

ruff check -q .
ruff format -q --check .
lint-imports --no-cache >.venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; exit 1; }
mypy --no-error-summary &
types=$!
status=0
pytest -q -n 2 --reruns 1 -rR --ignore=tests/real --ignore=tests/fuzz -m "not real and not long" || status=$?
wait "$types" || status=$?
exit "$status"
