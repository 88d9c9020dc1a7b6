#!/usr/bin/env bash
# a million steps, 10,000 openings of each reader, a file of 100 GB: memory and files stay as they are
#
#   scripts/nightly/load.sh [STEPS [TIMES [GIGABYTES]]]     some 25 minutes on a core
#
# DMAMBA_LOAD_DEVICE=cuda takes the steps on a GPU, and measures its memory, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=/dev/null
[[ ! -d .venv ]] || source .venv/bin/activate

status=0
python tests/reliability/load.py steps --steps "${1:-1000000}" --device "${DMAMBA_LOAD_DEVICE:-cpu}" || status=1
python tests/reliability/load.py handles --times "${2:-10000}" || status=1
python tests/reliability/load.py large --gigabytes "${3:-100}" || status=1
exit "$status"
