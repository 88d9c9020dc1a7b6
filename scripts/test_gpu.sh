#!/usr/bin/env bash
# Runs the tests that need a GPU; fails, rather than skips, where there is none. The Python that it
# uses needs a dmamba with CUDA ops (scripts/build_wheel.sh, or pip install . where nvcc is) and pytest.
#
#   scripts/test_gpu.sh [pytest arguments ...]
#   scripts/test_gpu.sh --sanitize [TOOL ...]    compute-sanitizer over every op, small; default: its
#                                                four tools, memcheck racecheck initcheck synccheck
#
# PYTHON names the Python (default: .venv/bin/python where it is, else python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
[[ -n ${PYTHON:-} || ! -x .venv/bin/python ]] || python=.venv/bin/python
"$python" -c '
try:
    import torch
    import dmamba
    from dmamba import _build_info
except ImportError as error:
    raise SystemExit(f"error: {error}; PYTHON names a Python that has torch and dmamba")
if _build_info.cuda_reason:
    raise SystemExit(f"error: this dmamba has no CUDA ops: {_build_info.cuda_reason}")
if not torch.cuda.is_available():
    raise SystemExit("error: torch finds no usable GPU")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, dmamba {dmamba.__version__}")'

if [[ ${1:-} != --sanitize ]]; then
  # The other tests need packages that a GPU machine may lack: their conftest.py stays out.
  exec "$python" -m pytest --confcutdir=tests/python/cuda tests/python/cuda "$@"
fi

shift
(($#)) || set -- memcheck racecheck initcheck synccheck
command -v compute-sanitizer >/dev/null || {
  echo "error: no compute-sanitizer: it comes with the CUDA toolkit" >&2
  exit 1
}
failed=()
for tool in "$@"; do
  echo "-- $tool"
  # Without torch's cache every tensor is an allocation of its own, whose ends the tools know.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$python" scripts/lib/sanitized_ops.py || failed+=("$tool")
done
echo "$(($# - ${#failed[@]})) passed, ${#failed[@]} failed ${failed[*]}"
((${#failed[@]} == 0))
