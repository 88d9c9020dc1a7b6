#!/usr/bin/env bash
# From a fresh clone to a trained and evaluated policy: sets everything up, then trains DMamba on the
# bundled hopper-medium sample and evaluates it in MuJoCo.
#
#   scripts/quickstart.sh [key=value ...] [--output DIR]     as for `dmamba train hopper-sample`
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/setup.sh"
cd "$ROOT"

choose_python
setup_system 1/4 without-tests
setup_venv 2/4
setup_torch 3/4
setup_package 4/4 without-tests
setup_extra mujoco

# A folder of its own for every run, unless the caller names one.
output=(--output "runs/quickstart-$(date +%Y%m%d-%H%M%S)")
for argument in "$@"; do
  case $argument in --output | --output=* | --resume | --resume=* | -h | --help) output=() ;; esac
done
say "Training on 2 cores takes a few minutes; the environment is .venv (source .venv/bin/activate)."
exec "$VENV/bin/dmamba" train hopper-sample "$@" "${output[@]}"
