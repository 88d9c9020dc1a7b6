#!/usr/bin/env bash
# Tries a CPU wheel where the system has none of the libraries that it was built with.
#
#   scripts/check_wheel.sh WHEEL
#
# In a fresh environment, and in a mount namespace in which the system's HDF5, yaml-cpp, spdlog, fmt,
# szip, libaec and libcurl are empty files and this checkout is an empty folder: `dmamba info`, reading
# episodes, beside h5py too, a tiny training, an action. Needs root, or a system that lets users have
# namespaces of their own, and a network for pip (torch alone is 200 MB). PYTHON names the Python
# (default: one that the wheel's name asks for); KEEP=1 leaves the environment for a look.
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/setup.sh"

if (($# != 1)) || [[ $1 == -* ]]; then
  die "usage: scripts/check_wheel.sh WHEEL"
fi
[[ $1 == *.whl && -f $1 ]] || die "$1: no such wheel"
wheel=$(realpath "$1")

# cp311 -> python3.11
[[ ${wheel##*/} =~ -cp3([0-9]+)- ]] || die "${wheel##*/}: the name has no Python version"
PYTHON=${PYTHON:-python3.${BASH_REMATCH[1]}}
choose_python
namespace=(unshare --mount)
((EUID == 0)) || namespace=(unshare --map-root-user --mount)
"${namespace[@]}" true 2>/dev/null ||
  die "this user may not make a mount namespace (unshare --mount): run it as root"

scratch=$(mktemp -d)
cleanup() {
  stop_heartbeat
  if [[ ${KEEP:-0} == 1 ]]; then say "left: $scratch"; else rm -rf "$scratch"; fi
}
trap cleanup EXIT
VENV=$scratch/venv
step 1/2 "a fresh environment with torch, h5py and the wheel (minutes)"
run_logged "creating $VENV" "$BASE_PYTHON" -m venv "$VENV"
run_logged "upgrading pip" "$VENV/bin/python" -m pip install --upgrade 'pip>=24'
cp "$wheel" "$ROOT/scripts/lib/wheel_check.py" "$scratch"
options=()
# pip prefers PyTorch's 2.x.y+cpu to the CUDA build 2.x.y of its own index.
! index_answers || options=(--extra-index-url "$TORCH_CPU_INDEX")
pip_install "installing the wheel" "${options[@]}" "$scratch/${wheel##*/}" h5py

step 2/2 "checks, without the system's libraries"
mkdir "$scratch/empty" "$scratch/home"
# shellcheck disable=SC2016 # the inner shell expands
"${namespace[@]}" bash -euc '
  root=$1 scratch=$2
  : >"$scratch/nothing"
  hidden=0
  while IFS= read -r file; do
    mount --bind "$scratch/nothing" "$file"
    hidden=$((hidden + 1))
  done < <(find /usr/lib /usr/local/lib /lib64 -xdev -type f \( -name "libhdf5*.so*" -o \
    -name "libyaml-cpp*.so*" -o -name "libspdlog*.so*" -o -name "libfmt*.so*" -o -name "libsz*.so*" -o \
    -name "libaec*.so*" -o -name "libcurl*.so*" \) 2>/dev/null)
  echo "      hidden: $hidden libraries of the system, and $root"
  mount --bind "$scratch/empty" "$root"
  cd "$scratch/home"
  exec env -u PYTHONPATH -u LD_LIBRARY_PATH HOME="$scratch/home" MPLCONFIGDIR="$scratch/home/mpl" \
    "$scratch/venv/bin/python" -I "$scratch/wheel_check.py"
' - "$ROOT" "$scratch"
say "${wheel##*/} works without the system's libraries"
