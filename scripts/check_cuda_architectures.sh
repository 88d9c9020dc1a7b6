#!/usr/bin/env bash
# Compiles every kernel for every architecture that is supported; needs nvcc, no GPU.
#
#   scripts/check_cuda_architectures.sh [ARCHITECTURE ...]     default: sm_80 sm_90 sm_100
#
# The token chain and files named hopper*.cu are made of Hopper's own instructions: they exist for
# sm_90a alone, which stands in for sm_90. A spill to local memory is shown as ptxas words it, and is no failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

(($#)) || set -- sm_80 sm_90 sm_100
command -v nvcc >/dev/null || {
  echo "error: no nvcc: install the CUDA toolkit" >&2
  exit 1
}
object=$(mktemp --suffix=.o)
trap 'rm -f "$object"' EXIT
failed=0
tried=0
mapfile -t sources < <(find kernels -name '*.cu' | sort)
for source in "${sources[@]}"; do
  for architecture in "$@"; do
    if [[ $source == kernels/token_chain/* || $source == */hopper*.cu ]]; then
      [[ $architecture == sm_90* ]] || continue
      architecture=sm_90a
    fi
    tried=$((tried + 1))
    started=$SECONDS
    if nvcc -std=c++20 -gencode "arch=compute_${architecture#sm_},code=$architecture" -I . -Xptxas -warn-spills -c "$source" -o "$object"; then
      echo "ok      $architecture  $source ($((SECONDS - started)) s)"
    else
      echo "FAILED  $architecture  $source"
      failed=$((failed + 1))
    fi
  done
done
echo "$((tried - failed)) passed, $failed failed"
((failed == 0))
