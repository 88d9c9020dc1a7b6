#!/usr/bin/env bash
# Sets everything up as quickstart.sh does, then runs the C++ tests (ctest) and the Python tests
# (pytest), both even if the first fails.
#
#   scripts/test.sh [pytest arguments ...]
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/setup.sh"
cd "$ROOT"

choose_python
setup_system 1/4 with-tests
setup_venv 2/4
setup_torch 3/4
setup_package 4/4 with-tests
setup_extra test

logs=${SETUP_LOG%/*}
ctest_status=0
pytest_status=0
ctest --test-dir "$(build_dir)" --output-on-failure --no-tests=error -j "$(nproc)" \
  2>&1 </dev/null | tee "$logs/ctest.log" || ctest_status=$?
python -m pytest "$@" 2>&1 </dev/null | tee "$logs/pytest.log" || pytest_status=$?

# The runners' own words once more, together.
say "---- ctest (exit status $ctest_status), pytest (exit status $pytest_status)"
grep -E '^[0-9]+% tests passed|^No tests were found' "$logs/ctest.log" || say "ctest gave no summary"
tail -n 1 "$logs/pytest.log"
((ctest_status == 0 && pytest_status == 0))
