# shellcheck shell=bash
# Prepares a machine for DMamba: system packages, a virtual environment, torch, the package itself.
#
# Sourced by quickstart.sh, test.sh, lint.sh and build_docs.sh after `set -euo pipefail`. Every step
# looks first and does nothing where nothing is missing, so a second run costs a second. Read from the
# environment:
#   PYTHON               the Python to start from (default: python3, else python3.14 ... python3.10)
#   DMAMBA_SKIP_SYSTEM   1: do not look at system packages; CMake finds the libraries elsewhere
#   CMAKE_BUILD_PARALLEL_LEVEL   compile jobs (default: by cores and memory)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV=$ROOT/.venv
VENV_STATE=$VENV/.dmamba # what these scripts know about the environment; also marks it as theirs
SETUP_LOG=$ROOT/build/logs/setup.log
TORCH_REQUIREMENT=torch==2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
HEARTBEAT_SECONDS=30
HEARTBEAT_PID=
mkdir -p "${SETUP_LOG%/*}"
: >"$SETUP_LOG"

# Pip asks nothing, says nothing about itself and installs into the environment, not for the user.
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0

say() { printf '%s\n' "$*"; }
step() { printf '[%s] %s\n' "$1" "${*:2}"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Reports every half minute that a long step is alive, with the compiler's own [done/all] if any.
start_heartbeat() {
  local started=$SECONDS owner=$$ progress
  (
    while sleep "$HEARTBEAT_SECONDS" >/dev/null 2>&1 && kill -0 "$owner" 2>/dev/null; do
      progress=$(grep -aoE '^ *\[[0-9]+/[0-9]+\]' "$SETUP_LOG" | tail -n 1 || true)
      say "      ... $1: $((SECONDS - started)) s$progress"
    done
  ) &
  HEARTBEAT_PID=$!
}

stop_heartbeat() {
  [[ -n $HEARTBEAT_PID ]] || return 0
  kill "$HEARTBEAT_PID" 2>/dev/null || true
  wait "$HEARTBEAT_PID" 2>/dev/null || true
  HEARTBEAT_PID=
}
trap stop_heartbeat EXIT

# run_logged WHAT COMMAND...: output goes to the log; on failure its last 40 lines are shown.
run_logged() {
  local what=$1 status=0
  shift
  printf '\n$ %s\n' "$*" >>"$SETUP_LOG"
  start_heartbeat "$what"
  "$@" </dev/null >>"$SETUP_LOG" 2>&1 || status=$?
  stop_heartbeat
  ((status == 0)) && return 0
  {
    printf -- '---- the last lines of %s\n' "$SETUP_LOG"
    tail -n 40 "$SETUP_LOG"
    printf -- '----\nerror: %s failed (exit status %s); everything it said: %s\n' \
      "$what" "$status" "$SETUP_LOG"
  } >&2
  return "$status"
}

version_at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# ---- Python -------------------------------------------------------------------------------------

python_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

# Sets BASE_PYTHON, the Python the environment is made from, and BASE_VERSION (such as 3.11).
choose_python() {
  local candidate
  BASE_PYTHON=
  if [[ -n ${PYTHON:-} ]]; then
    python_supported "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.10 to 3.14"
    BASE_PYTHON=$(command -v "$PYTHON")
  else
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
      if command -v "$candidate" >/dev/null && python_supported "$candidate"; then
        BASE_PYTHON=$(command -v "$candidate")
        break
      fi
    done
  fi
  [[ -n $BASE_PYTHON ]] ||
    die "no Python 3.10 to 3.14 found: install one (Debian: apt-get install python3), or set PYTHON"
  BASE_VERSION=$("$BASE_PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
}

# torch_version PYTHON: prints the version of its torch, nothing where it has none. Reads
# torch/version.py as the CMake files do; importing torch would take seconds.
torch_version() {
  "$1" - <<'END'
import importlib.util
import pathlib
import runpy

spec = importlib.util.find_spec("torch")
if spec is not None and spec.origin is not None:
    print(runpy.run_path(str(pathlib.Path(spec.origin).parent / "version.py"))["__version__"])
END
}

torch_supported() { [[ $1 =~ ^2\.1[123]([.+].*)?$ ]]; }

# ---- System packages ----------------------------------------------------------------------------

is_installed() { [[ $(dpkg -s "$1" 2>/dev/null) == *"ok installed"* ]]; }

has_browser() {
  command -v chromium-headless-shell || command -v chromium || command -v google-chrome
} >/dev/null

# Prints the Debian packages that are missing, one a line.
missing_packages() {
  local package packages=(libhdf5-dev libyaml-cpp-dev libspdlog-dev nlohmann-json3-dev)
  [[ $1 == with-tests ]] && packages+=(libgtest-dev)
  # The report's page is tested in a browser; whichever Chromium is there will do.
  [[ $1 == with-tests ]] && ! has_browser && packages+=(chromium-headless-shell)
  for package in "${packages[@]}"; do
    is_installed "$package" || say "$package"
  done
  command -v "${CXX:-g++}" >/dev/null || say g++
  # A Python from elsewhere (pyenv, conda) brings these two; Debian's comes without.
  "$BASE_PYTHON" -c 'import ensurepip, venv' 2>/dev/null || say "python$BASE_VERSION-venv"
  "$BASE_PYTHON" -c '
import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
    say "python$BASE_VERSION-dev"
}

install_packages() {
  local sudo=()
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
      {
        say "error: these system packages are missing, and installing them needs root:"
        printf '         %s\n' "$@"
        say "       Run this, then start again:"
        say "         sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
        say "       (If CMake finds the libraries elsewhere, set DMAMBA_SKIP_SYSTEM=1.)"
      } >&2
      exit 1
    fi
    sudo=(sudo -n)
  fi
  say "      installing them through apt"
  # ccache is a convenience: worth having where something is installed anyway.
  local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120)
  # One broken third-party source fails the update and need not stop us; the install decides.
  run_logged "apt-get update" "${apt[@]}" update || say "      apt-get update failed; trying on"
  run_logged "apt-get install" "${apt[@]}" install -y --no-install-recommends "$@" ccache
}

# setup_system LABEL with-tests|without-tests
setup_system() {
  local missing=()
  if [[ ${DMAMBA_SKIP_SYSTEM:-0} == 1 ]]; then
    step "$1" "system packages: not looked at (DMAMBA_SKIP_SYSTEM=1)"
  elif ! command -v dpkg >/dev/null; then
    step "$1" "system packages: not a Debian or Ubuntu, so CMake has to find a C++20 compiler, HDF5," \
      "yaml-cpp, spdlog, nlohmann-json and, for the tests, GoogleTest by itself"
  else
    mapfile -t missing < <(missing_packages "$2")
    if ((${#missing[@]} == 0)); then
      step "$1" "system packages: present"
    else
      step "$1" "system packages: missing ${missing[*]}"
      install_packages "${missing[@]}"
    fi
  fi
  check_compiler
}

check_compiler() {
  local compiler=${CXX:-g++} version
  command -v "$compiler" >/dev/null || die "no C++ compiler '$compiler': install g++ 11 or newer, or set CXX"
  version=$("$compiler" -dumpversion)
  if [[ $("$compiler" --version) != *clang* ]] && ! version_at_least "$version" 11; then
    die "$compiler is version $version, DMamba is C++20: install g++ 11 or newer, or set CXX"
  fi
}

# ---- The environment ----------------------------------------------------------------------------

pip_install() {
  local what=$1
  shift
  run_logged "$what" "$VENV/bin/python" -m pip install "$@"
}

venv_works() { [[ -x $VENV/bin/python ]] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }

# Fails where PYTHON names another Python than the one the environment was made from.
venv_matches() {
  local facts='import sys; print(sys.base_prefix, sys.version)'
  [[ -z ${PYTHON:-} || $("$VENV/bin/python" -c "$facts") == "$("$BASE_PYTHON" -c "$facts")" ]]
}

create_venv() {
  local torch options=()
  torch=$(torch_version "$BASE_PYTHON")
  torch_supported "$torch" && options=(--system-site-packages)
  mkdir -p "$VENV_STATE" # before the environment: a half-made one is known as ours and replaced
  run_logged "creating $VENV" "$BASE_PYTHON" -m venv "${options[@]}" "$VENV"
  # A Python that is itself in an environment: --system-site-packages shows its base, so name its folders.
  if ((${#options[@]})) && [[ $(torch_version "$VENV/bin/python") != "$torch" ]]; then
    "$BASE_PYTHON" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
      >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/calling_python.pth"
  fi
  pip_install "upgrading pip" --upgrade 'pip>=24'
}

# setup_venv LABEL: an environment in .venv, activated for what follows.
setup_venv() {
  local verb=reusing
  if ! { venv_works && venv_matches; }; then
    if [[ -d $VENV ]]; then
      [[ -d $VENV_STATE ]] || die "$VENV is not usable here (no pip, or another Python than PYTHON)" \
        "and was not made by these scripts: move it away"
      rm -rf "$VENV"
    fi
    verb=created
    create_venv
  fi
  mkdir -p "$VENV_STATE"
  unset PYTHONHOME
  export VIRTUAL_ENV=$VENV PATH=$VENV/bin:$PATH
  step "$1" "environment: $verb .venv ($("$VENV/bin/python" --version))"
}

index_answers() {
  timeout 10 "$VENV/bin/python" - "$TORCH_CPU_INDEX/torch/" <<'END' 2>/dev/null
import sys
import urllib.request

with urllib.request.urlopen(sys.argv[1], timeout=9) as answer:
    sys.exit(answer.status != 200)
END
}

has_nvidia_driver() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

# setup_torch LABEL: the calling Python's torch, else PyTorch's CPU wheel, else the index's.
setup_torch() {
  local found
  found=$(torch_version "$VENV/bin/python")
  if torch_supported "$found"; then
    step "$1" "torch: $found, already there"
    return
  fi
  [[ -z $found ]] || say "      torch $found is there, DMamba needs 2.11 to 2.13"
  if has_nvidia_driver; then
    step "$1" "torch: installing $TORCH_REQUIREMENT (with CUDA: there is an NVIDIA driver)"
  elif index_answers; then
    step "$1" "torch: installing $TORCH_REQUIREMENT from $TORCH_CPU_INDEX (no NVIDIA driver)"
    pip_install "installing torch" --index-url "$TORCH_CPU_INDEX" "$TORCH_REQUIREMENT" && return
    say "      $TORCH_CPU_INDEX answered, yet the installation failed: trying pip's own index"
  else
    step "$1" "torch: installing $TORCH_REQUIREMENT from pip's own index" \
      "($TORCH_CPU_INDEX does not answer within 10 s)"
  fi
  pip_install "installing torch" "$TORCH_REQUIREMENT"
}

# ---- The package --------------------------------------------------------------------------------

# setup_extra NAME: an extra of pyproject.toml. What requirements/NAME.txt pins is installed from there
# and has to have its hashes; torch, which that leaves out, is there before.
setup_extra() {
  local requirements=() options=() pinned=$ROOT/requirements/$1.txt stamp=$VENV_STATE/extra-$1 wanted
  if [[ -f $pinned ]]; then
    requirements=(--require-hashes --no-deps -r "$pinned")
    wanted=$(sha256sum <"$pinned")
  else
    mapfile -t requirements < <(extra_requirements "$1")
    ((${#requirements[@]})) || die "pyproject.toml has no extra '$1'"
    wanted=${requirements[*]}
  fi
  [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
  # Programs have to lie in this environment, not only in the one that it sees through.
  [[ $1 == lint ]] && options=(--ignore-installed)
  say "      installing the $1 extra: ${requirements[*]##"$ROOT/"}"
  pip_install "installing the $1 extra" "${options[@]}" "${requirements[@]}"
  say "$wanted" >"$stamp"
}

# The requirements of an extra, one a line.
extra_requirements() {
  "$VENV/bin/python" - "$ROOT/pyproject.toml" "$1" <<'END'
import sys

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"][sys.argv[2]], sep="\n")
END
}

# Without isolation the build's own tools have to be there. CMake and ninja come from pip where the
# system's are missing or too old: that needs no root.
setup_build_tools() {
  local wanted=() version
  "$VENV/bin/python" -c '
from importlib.metadata import version
import sys
sys.exit(tuple(map(int, version("scikit-build-core").split(".")[:2])) < (0, 11))' 2>/dev/null ||
    wanted+=('scikit-build-core>=0.11')
  version=$(cmake --version 2>/dev/null | sed -n '1s/^cmake version //p' || true)
  { [[ -n $version ]] && version_at_least "$version" 3.24; } || wanted+=('cmake>=3.24')
  command -v ninja >/dev/null || wanted+=(ninja)
  ((${#wanted[@]} == 0)) || pip_install "installing build tools" --ignore-installed "${wanted[@]}"
  hash -r
}

# A compiler over torch's headers takes up to 2 GB: no more jobs than the memory bears.
limit_jobs() {
  local cores gigabytes
  [[ -z ${CMAKE_BUILD_PARALLEL_LEVEL:-} ]] || return 0
  cores=$(nproc)
  gigabytes=$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  ((cores <= gigabytes / 2)) || cores=$((gigabytes / 2))
  ((cores >= 1)) || cores=1
  export CMAKE_BUILD_PARALLEL_LEVEL=$cores
}

build_dir() {
  "$VENV/bin/python" -c '
import sys, sysconfig
tag = "cp%d%d" % sys.version_info[:2]
platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
print(sys.argv[1], "/build/", tag, "-", tag, "-", platform, sep="")' "$ROOT"
}

# Everything the installed package is made from: the sources, Python, torch, the compiler.
package_fingerprint() {
  {
    "$VENV/bin/python" --version
    torch_version "$VENV/bin/python"
    "${CXX:-g++}" --version
    cd "$ROOT" || exit
    find CMakeLists.txt pyproject.toml README.md LICENSE THIRD_PARTY_LICENSES.txt cmake src include \
      kernels bindings configs data/samples -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  } | sha256sum | cut -d ' ' -f 1
}

# Prints when pip last installed dmamba here, nothing where it is not installed.
installed_record() {
  find "$VENV"/lib/python*/site-packages -path '*/dmamba-*.dist-info/RECORD' -printf '%p %T@\n'
}

# package_is_current FINGERPRINT ON|OFF: the tests need the build folder too.
package_is_current() {
  local record
  record=$(installed_record)
  [[ -n $record && -f $VENV_STATE/package && $(<"$VENV_STATE/package") == "$1 $record" ]] &&
    [[ $2 == OFF || -f $(build_dir)/CMakeCache.txt ]]
}

# setup_package LABEL with-tests|without-tests: builds into build/<wheel tag>, installs into .venv.
setup_package() {
  local stamp=$VENV_STATE/package fingerprint tests=OFF started=$SECONDS
  [[ $2 == with-tests ]] && tests=ON
  setup_build_tools
  limit_jobs
  fingerprint=$(package_fingerprint)
  if package_is_current "$fingerprint" "$tests"; then
    step "$1" "DMamba: installed from these sources already"
  else
    step "$1" "DMamba: building with $CMAKE_BUILD_PARALLEL_LEVEL jobs (minutes the first time)"
    rm -f "$stamp"
    pip_install "building DMamba" -v --no-build-isolation \
      -C "cmake.define.DMAMBA_BUILD_TESTS=$tests" "$ROOT"
    say "$fingerprint $(installed_record)" >"$stamp"
    say "      built and installed in $((SECONDS - started)) s"
  fi
  [[ $tests == OFF ]] || build_tests
}

# The C++ tests share the package's build folder: nothing is compiled twice.
build_tests() {
  local dir
  dir=$(build_dir)
  run_logged "configuring the tests" cmake -S "$ROOT" -B "$dir" -DDMAMBA_BUILD_TESTS=ON
  run_logged "building the tests" cmake --build "$dir"
}
