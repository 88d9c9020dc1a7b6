#!/usr/bin/env bash
# clang-tidy over every C++ file outside the tests, the CUDA glue included
#
#   scripts/nightly/clang_tidy.sh [FILE ...]     all files, or some
#
# The checks stand in .clang-tidy, the version in the `tidy` extra of pyproject.toml. It fails on any
# finding, or file that does not parse. TIDY_JOBS files at a time (default: the cores); about 10 s each.
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/setup.sh"
cd "$ROOT"

choose_python
setup_system 1/3 with-tests
setup_venv 2/3
setup_torch 3/3
setup_build_tools
setup_extra tidy

# Nothing is built: clang could not read the compiler's precompiled headers anyway.
build=build/tidy
run_logged "configuring $build" cmake -S . -B "$build" -G Ninja -DDMAMBA_CUDA=OFF \
  -DDMAMBA_EXAMPLES=ON -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DPython_EXECUTABLE="$VENV/bin/python"
# The package has no omp.h, and all of the compiler's own headers would be too many.
mkdir -p "$build/openmp"
ln -sf "$("${CXX:-g++}" -print-file-name=include/omp.h)" "$build/openmp/omp.h"

# A build for the CPU leaves src/ops/cuda out; with torch's and CUDA's headers it parses.
"$VENV/bin/python" - "$build/compile_commands.json" <<'END'
import json
import pathlib
import shutil
import sys

path = pathlib.Path(sys.argv[1])
commands = json.loads(path.read_text())
# The nvcc on the PATH may be a script that calls the toolkit's.
nvccs = [shutil.which("nvcc") or "nvcc", "/usr/local/cuda/bin/nvcc"]
folders = [pathlib.Path(nvcc).resolve().parents[1] / "include" for nvcc in nvccs]
cuda = next((folder for folder in folders if (folder / "cuda_runtime_api.h").exists()), None)
like = next(c for c in commands if c["file"].endswith("/src/ops/cpu/dispatch.cpp"))
known = {c["file"] for c in commands}
if cuda is None:
    print("NOT CHECKED: src/ops/cuda, there is no CUDA toolkit on this machine")
for source in sorted(pathlib.Path("src/ops/cuda").resolve().glob("*.cpp")) if cuda else ():
    if str(source) not in known:
        command = like["command"].replace(like["file"], str(source))
        command += f" -DC10_CUDA_NO_CMAKE_CONFIGURE_FILE -isystem {cuda}"
        commands.append({**like, "file": str(source), "command": command})
path.write_text(json.dumps(commands, indent=1))
END

sources=("$@")
if (($# == 0)); then
  mapfile -t sources < <("$VENV/bin/python" -c '
import json, pathlib, sys
root = pathlib.Path.cwd()
names = {pathlib.Path(c["file"]).relative_to(root) for c in json.load(open(sys.argv[1]))}
print(*sorted(str(name) for name in names if name.parts[0] != "tests"), sep="\n")' "$build/compile_commands.json")
fi

logs=build/logs/clang-tidy
rm -rf "$logs"
mkdir -p "$logs"
export build logs
# Called by a shell of its own.
tidy() {
  local log=$logs/${1//\//-}.log
  clang-tidy --quiet --warnings-as-errors='*' -p "$build" --extra-arg="-isystem$PWD/$build/openmp" \
    "$1" >"$log" 2>&1 || {
    echo "---- $1"
    grep -vE '^[0-9]+ warnings? .*generated|^Suppressed|^Use -header-filter' "$log"
    : >"$log.failed"
  }
}
export -f tidy
# shellcheck disable=SC2016 # the $1 of that shell
printf '%s\n' "${sources[@]}" | xargs -P "${TIDY_JOBS:-$(nproc)}" -I '{}' bash -c 'tidy "$1"' tidy '{}'
failed=("$logs"/*.failed)
[[ -e ${failed[0]} ]] || failed=()
say "clang-tidy: $((${#sources[@]} - ${#failed[@]})) of ${#sources[@]} files clean"
((${#failed[@]} == 0))
