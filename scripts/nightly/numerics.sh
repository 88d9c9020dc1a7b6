#!/usr/bin/env bash
# random shapes, strides, types and extreme values of every op and module against float64, with new seeds
#
#   scripts/nightly/numerics.sh [EXAMPLES [ROUNDS]]     EXAMPLES a property and round (default 500),
#                                                       ROUNDS with a seed each (default 4)
#
# On a GPU, too, where the installed package has CUDA ops and there is one. Of a failure the line that
# repeats it is printed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

python=${PYTHON:-python3}
[[ -n ${PYTHON:-} || ! -x .venv/bin/python ]] || python=.venv/bin/python
export DMAMBA_EXAMPLES=${1:-500}

tests=(tests/python/test_ops_properties.py tests/python/test_module_properties.py)
if "$python" -c 'import torch; from dmamba import _build_info
raise SystemExit(bool(_build_info.cuda_reason) or not torch.cuda.is_available())'; then
  tests+=(tests/python/cuda/test_cuda_properties.py)
else
  echo "on the CPU alone: no GPU, or a package without CUDA ops"
fi

status=0
for ((round = 1; round <= ${2:-4}; ++round)); do
  seed=$((RANDOM << 15 | RANDOM))
  echo "-- round $round of ${2:-4}, seed $seed"
  "$python" -m pytest -q "${tests[@]}" --hypothesis-seed="$seed" || {
    status=1
    echo "again: DMAMBA_EXAMPLES=$DMAMBA_EXAMPLES $python -m pytest ${tests[*]} --hypothesis-seed=$seed"
  }
done
exit "$status"
