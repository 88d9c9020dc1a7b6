#!/usr/bin/env bash
# environments that raise, hang, answer nonsense or die at random: the other episodes stay as they were
#
#   scripts/nightly/environments.sh [REPETITIONS]
#
# In each repetition a policy plays some hundred episodes, in which random faults of all kinds strike at
# random, and workers are killed from outside. Every episode that is not struck has to have the
# return of a run without faults, to the bit, and no process may be left behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PWD/.venv/bin:$PATH
exec python tests/reliability/environments.py --repetitions "${1:-20}"
