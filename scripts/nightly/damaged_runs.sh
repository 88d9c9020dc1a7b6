#!/usr/bin/env bash
# resumes runs of which a file was mutated: each is refused, or ends as if nobody had touched it
#
#   scripts/nightly/damaged_runs.sh [TRIALS]     default: 5000; a quarter of an hour on a core
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=/dev/null
[[ ! -d .venv ]] || source .venv/bin/activate

python tests/reliability/mutated_runs.py --trials "${1:-5000}" --seed "$((RANDOM << 15 | RANDOM))"
