#!/usr/bin/env bash
# mutated files through every reader of files, with clang's sanitizers, and through the front door
#
#   scripts/nightly/fuzz.sh [RUNS [SECONDS]]     RUNS inputs a reader (default 1000000), SECONDS in all
#                                                (default 28800)
#   scripts/nightly/fuzz.sh --pack FOLDER        leaves what runs elsewhere in FOLDER, and runs nothing:
#                                                FOLDER/run.sh SECONDS RUNS OUTPUT
#
# Needs clang with libFuzzer (apt install clang libclang-rt-14-dev), and the installed package with its
# extra `test`. Fails where a reader of our own code, or the front door, let something through: what
# the HDF5 library does by itself (fuzz_d4rl, fuzz_minari, fuzz_converted) is counted, and kept from
# users by dmamba-check-file, which is what the front door shows. Results in build/fuzz/results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/setup.sh
source scripts/lib/setup.sh

command -v clang++ >/dev/null || die "no clang++: apt install clang libclang-rt-14-dev"
PYTHON=${PYTHON:-python3}
kit=$ROOT/build/fuzz/kit
alone=0
if [[ ${1:-} == --pack ]]; then
  (($# == 2)) || die "--pack needs a folder"
  kit=$(realpath -m "$2")
  alone=1
fi
runs=${1:-1000000} seconds=${2:-28800}

cmake -S tests/fuzz -B build/fuzz -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
  >build/fuzz-configure.log
cmake --build build/fuzz
rm -rf "$kit"
mkdir -p "$kit/bin" "$kit/lib" "$kit/python"
cp build/fuzz/fuzz_* build/fuzz/front_door build/fuzz/dmamba-check-file "$kit/bin"
strip --strip-debug "$kit/bin/front_door" "$kit/bin/dmamba-check-file"
cp tests/fuzz/run.sh tests/sanitizers/lsan.supp "$kit"
cp tests/fuzz/fuzz_python.py tests/fuzz/mutations.py "$kit/python"
"$PYTHON" tests/fuzz/make_corpora.py "$kit/corpora"
if ((alone)); then
  # Libraries that another system may not have; of the package what needs nothing compiled.
  ldd "$kit"/bin/* | awk '/lib(hdf5|sz|aec|yaml-cpp)/{print $3}' | sort -u | xargs cp -Lt "$kit/lib"
  hdf5=$(ldd "$kit/bin/front_door" | awk '/libhdf5/{print $3}')
  PYTHONPATH=scripts/lib "$PYTHON" -c 'import sys; from leave_out import *
without(Path(sys.argv[1]), ["libcurl", "libcrypto"], Path(sys.argv[2]))' "$hdf5" "$kit/lib"
  for module in nn/official data/minari_folders envs/ids; do
    mkdir -p "$kit/python/alone/${module%/*}"
    cp "bindings/dmamba/$module.py" "$kit/python/alone/$module.py"
    : >"$kit/python/alone/${module%/*}/__init__.py"
  done
  echo "$kit ($(du -sh "$kit" | cut -f1))"
  exit
fi

results=$ROOT/build/fuzz/results
rm -rf "$results"
"$kit/run.sh" "$seconds" "$runs" "$results"
# Readers without libhdf5, and the front door: nothing may be found.
! awk -F' *\\| *' '$2 ~ /^(yaml|safetensors|replay|cpt|metadata|front-door)$/ && $6 != 0' \
  "$results/table.md" | grep . || die "findings: see $results/found"
awk -F' *\\| *' -v runs="$runs" '$3 ~ /^[0-9]+$/ && $3 < runs {print $2 ": only " $3 " of " runs}' \
  "$results/table.md" | { ! grep .; } || die "not all inputs were tried in $seconds s"
