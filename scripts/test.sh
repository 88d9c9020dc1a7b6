#!/usr/bin/env bash
# Sets everything up as quickstart.sh does, then compiles the CUDA glue where there is an nvcc, runs
# the C++ tests (ctest) and the Python tests (pytest), each even if one before it fails.
#
#   scripts/test.sh [pytest arguments ...]
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/setup.sh"
# shellcheck source=scripts/lib/check_glue.sh
source "$ROOT/scripts/lib/check_glue.sh"
cd "$ROOT"

choose_python
setup_system 1/4 with-tests
setup_venv 2/4
setup_torch 3/4
setup_extra test # before the package: what it needs is then there, pinned
setup_package 4/4 with-tests

logs=${SETUP_LOG%/*}
glue_status=0
ctest_status=0
pytest_status=0
check_cuda_glue || glue_status=$?
ctest --test-dir "$(build_dir)" --output-on-failure --no-tests=error -j "$(nproc)" \
  2>&1 </dev/null | tee "$logs/ctest.log" || ctest_status=$?
python -m pytest "$@" 2>&1 </dev/null | tee "$logs/pytest.log" || pytest_status=$?

# The runners' own words once more, together.
say "---- CUDA glue (exit status $glue_status), ctest ($ctest_status), pytest ($pytest_status)"
grep -E '^[0-9]+% tests passed|^No tests were found' "$logs/ctest.log" || say "ctest gave no summary"
tail -n 1 "$logs/pytest.log"
((glue_status == 0 && ctest_status == 0 && pytest_status == 0))
