#!/bin/sh
# check.sh: everything that can be said without another program: style, types, layers, unit tests.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PWD/.venv/bin:$PATH

# Beside the tests, which wait more than they work (hence four at a time, on whatever machine); what there is to say about it comes behind theirs.
{
    ruff check -q . && ruff format -q --check . && lint-imports --no-cache && mypy --no-error-summary
} >.venv/static.log 2>&1 &
static=$!
status=0
pytest -q -n 4 --reruns 1 -rR --ignore=tests/real --ignore=tests/fuzz -m "not real and not long" || status=$?
wait "$static" || { status=$?; cat .venv/static.log; }
exit "$status"
