#!/usr/bin/env bash
# kills trainings, sweeps, conversions and recordings 200 times, fills disks, and compares what is resumed
#
#   scripts/nightly/kills.sh [KILLS]    default: 200
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

python=${PYTHON:-python3}
[[ -n ${PYTHON:-} || ! -x .venv/bin/python ]] || python=.venv/bin/python

status=0
"$python" tests/reliability/kills.py --kills "${1:-200}" || status=1
"$python" tests/reliability/kills.py --what train,convert,record,export --every --stride 29 \
  --faults full,fail || status=1
if ((EUID == 0)); then
  "$python" tests/reliability/full_disk.py || status=1
else
  echo "NOT RUN: a disk that is really full: mounting one needs root"
fi
exit "$status"
