#!/usr/bin/env bash
# Runs the tests that need a GPU; fails, rather than skips, where there is none. The Python that it
# uses needs a dmamba with CUDA ops (scripts/build_wheel.sh, or pip install . where nvcc is), pytest,
# h5py and hypothesis.
#
#   scripts/test_gpu.sh [pytest arguments ...]
#   scripts/test_gpu.sh --sanitize [TOOL ...]    compute-sanitizer over every op, training steps and
#                                                policies, small; default: its four tools, memcheck
#                                                racecheck initcheck synccheck
#
# PYTHON names the Python (default: .venv/bin/python where it is, else python3). A tool's words about a
# program go to build/logs/sanitize/TOOL-PROGRAM.log; DMAMBA_SANITIZE_JOBS processes run at a time
# (default: one a core), each with a context of its own on the GPU.
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
logs=build/logs/sanitize
rm -rf "$logs"
mkdir -p "$logs"
export logs python

# Ends well where the program has done all of its work and the tool has found nothing.
sanitize() {
  local tool=$1 program=$2 log=$logs/$1-$2.log started=$SECONDS status=0
  local options=() command=(scripts/lib/sanitized_steps.py "$program")
  [[ $program == ops ]] && command=(scripts/lib/sanitized_ops.py)
  # Without torch's cache every tensor is an allocation of its own, whose ends the tools know; but
  # what a CUDA graph works on has to come from the cache.
  [[ $program == graph ]] || export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  case $tool in
    # Races and barriers lie within a kernel: those of torch and cuBLAS, slow to watch, are not ours.
    racecheck | synccheck) options=(--kernel-name kns=dmamba) ;;
    # A kernel that is left out would count as one that writes nothing, so all are watched; what
    # counts are the reports below.
    initcheck) options=(--print-limit 100000) ;;
  esac
  compute-sanitizer --tool "$tool" --error-exitcode 9 "${options[@]}" \
    "$python" "${command[@]}" >"$log" 2>&1 || status=$?
  # torch's and cuBLAS's kernels read padding that nobody has written, and use nothing of it.
  if [[ $tool == initcheck ]] && ((status == 9)) && ! grep -A1 '^========= Uninit' "$log" | grep -q dmamba; then
    status=0
  fi
  grep -qE '^every (op|step) ran' "$log" || ((status)) || status=1
  echo "$tool, $program: exit status $status, $((SECONDS - started)) s: $(grep '^========= .*SUMMARY' "$log" | tail -n 1)"
  if ((status)); then
    echo "---- the first lines of $log"
    grep -v '^========= *Host Frame' "$log" | head -n 40
    return 1
  fi
}
export -f sanitize

# The longest first. Over steps, two of the tools need products that are not cuBLAS's
# (scripts/lib/sanitized_steps.py).
runs=()
for program in ops plain eager graph; do
  for tool in "$@"; do
    case $tool-$program in
      racecheck-eager | racecheck-graph | initcheck-eager | initcheck-graph) ;;
      memcheck-plain | synccheck-plain) ;;
      *) runs+=("$tool $program") ;;
    esac
  done
done
echo "${#runs[@]} runs: $* over every op, single launches and graphs"
printf '%s\n' "${runs[@]}" |
  xargs -P "${DMAMBA_SANITIZE_JOBS:-$(nproc)}" -L 1 bash -c 'sanitize "$@"' sanitize &&
  echo "compute-sanitizer found nothing in ${#runs[@]} runs"
