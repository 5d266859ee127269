#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Everything that has to be green before a change lands. Every lane runs, whatever the ones before it gave.
#
# Usage: scripts/test.sh                 checks, tests and Transformers' own common tests; newest and oldest versions
#        scripts/test.sh --fast          checks, and on the newest versions the tests that are not slow and start no
#                                        process of their own (which loads PyTorch anew each time)
#        scripts/test.sh [--fast] ARGS   only pytest on the newest versions, with ARGS: paths, -k, -x, ...
#
# Real images are found through SVIT_TEST_DATA; tests that want them skip without it.

# no -e: all lanes run, and no -u: old shells take an empty list for an unset variable
set -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source scripts/environment.sh

newest=.venv-test
oldest=.venv-test-floor
fast=()
if [ "${1:-}" = --fast ]; then
    fast=(-m "not slow and not process")
    shift
fi
# two workers with one thread each are faster on small models than one worker with two threads
export OMP_NUM_THREADS=1

if [ $# -gt 0 ]; then
    ensure_test_environment && exec "$newest/bin/python" -m pytest "${fast[@]}" "$@"
    exit 1
fi

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
summary=()
failures=0

# Usage: lane NAME COMMAND...: run the command under a heading and note how it ended.
lane() {
    local name=$1 start=$SECONDS outcome=passed
    shift
    printf '\n>>> %s\n' "$name"
    "$@" 2>&1 | tee "$logs/lane" || { outcome=FAILED && failures=$((failures + 1)); }
    # pytest's closing line, where the lane has one
    closing_line=$(grep -E '^=+ .* in [0-9.]+s .*=+$' "$logs/lane" | tail -n 1)
    summary+=("$(printf '%-6s %5d s  %s' "$outcome" $((SECONDS - start)) "$name")")
}

suite() {
    local venv=$1
    shift
    "$venv/bin/python" -m pytest -n 2 --dist worksteal --durations 10 "$@"
}

# Usage: both COMMAND COMMAND: run two commands that use one core each at the same time, and show one after the other.
both() {
    $1 >"$logs/first" 2>&1 &
    local status=0 first=$!
    $2 >"$logs/second" 2>&1 || status=$?
    wait "$first" || status=$?
    cat "$logs/first" "$logs/second"
    return "$status"
}

# Make both environments at the same time: pip uses one core.
environments() {
    ensure_test_environment &
    local status=0 newest_install=$!
    if [ ${#fast[@]} -eq 0 ]; then
        ensure_environment "$oldest" dev,train,vision,curves,visualize,dense,video constraints.txt constraints-floor.txt
        status=$?
    fi
    wait "$newest_install" && return "$status"
}

transformers_suite() {
    # one process each loads PyTorch and the tests once
    PYTEST_WORKERS=0 bash tests/transformers_suite/run.sh "$1"
}

lane "environments" environments
lane "checks, documentation site" both "bash scripts/check.sh" "bash scripts/docs.sh"
lane "tests, newest versions" suite "$newest" "${fast[@]}"
result=$closing_line
if [ ${#fast[@]} -eq 0 ]; then
    lane "tests, oldest versions" suite "$oldest" -m "not slow and not newest"
    if [ -f tests/transformers_suite/run.sh ]; then
        lane "Transformers' common tests, newest and oldest versions" both "transformers_suite $newest" \
            "transformers_suite $oldest"
    fi
fi

printf '\n>>> summary\n'
printf '%s\n' "${summary[@]}"
# the last line is pytest's own, of the tests on the newest versions
printf '%s\n' "$result"
[ "$failures" -eq 0 ]
