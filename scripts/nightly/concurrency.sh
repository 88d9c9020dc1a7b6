#!/usr/bin/env bash
# 20 processes at once on a run, a sweep, a download, a conversion, ...: one works, the others wait or are told
#
#   scripts/nightly/concurrency.sh [ROUNDS [PROCESSES]]     a round takes some minutes on two cores
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=/dev/null
[[ ! -d .venv ]] || source .venv/bin/activate

python tests/reliability/concurrency.py --rounds "${1:-5}" --processes "${2:-20}"
