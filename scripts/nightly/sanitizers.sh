#!/usr/bin/env bash
# C++ and Python tests under the address, leak, undefined-behaviour and thread sanitizers
#
#   scripts/nightly/sanitizers.sh [REPETITIONS [PART ...]]
#
# REPETITIONS (default 20) is how often the tests run under the thread sanitizer: races need luck.
# Parts, by default all:
#   thread    the areas with threads of their own (preset tsan: readers, conversion, samplers, files)
#   leaks     every C++ test of the ordinary build, with the leak sanitizer preloaded: nothing to build
#   address   every C++ test (preset asan); leaks too
#   python    the Python tests that reach C++, with the extension of the preset asan
#   small     the C++ tests that need no torch, address and undefined behaviour (preset asan-small)
#   emulation the CUDA kernels on this processor, once under each of the two (presets tsan, asan-small)
# The preset asan compiles for an hour on two cores, once; the ccache keeps it.
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/setup.sh"
cd "$ROOT"

repetitions=${1:-20}
[[ $repetitions =~ ^[1-9][0-9]*$ ]] || die "REPETITIONS must be a number, got '$repetitions'"
parts=("${@:2}")
((${#parts[@]})) || parts=(thread leaks address python emulation)
for part in "${parts[@]}"; do
  [[ " thread leaks address python small emulation " == *" $part "* ]] ||
    die "no part '$part'; there are: thread leaks address python small emulation"
done

# Threads of OpenMP that spin while others work would take the test's time.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} GOMP_SPINCOUNT=10000

choose_python
setup_system 1/3 with-tests
setup_venv 2/3
setup_torch 3/3
setup_build_tools
limit_jobs

# What follows is called where bash goes on after errors: each step says what becomes of its own.
build() {
  run_logged "configuring the preset $1" cmake --preset "$1" &&
    run_logged "building the preset $1" cmake --build --preset "$1"
}

run_thread() {
  build tsan && ctest --preset tsan -LE emulation --repeat "until-fail:$repetitions" -j "$(nproc)"
}

run_leaks() {
  setup_package package with-tests || return
  local library program status=0
  library=$("${CXX:-g++}" -print-file-name=liblsan.so)
  for program in "$(build_dir)"/tests/cpp/test_*; do
    # The examples' tests start shells, whose leaks are none of ours.
    [[ -x $program && -f $program && $program != */test_examples ]] || continue
    LSAN_OPTIONS=suppressions=tests/sanitizers/lsan.supp:print_suppressions=0 \
      LD_PRELOAD=$library "$program" --gtest_brief=1 || status=1
  done
  return "$status"
}

run_address() {
  build asan && ctest --preset asan -LE emulation -j "$(nproc)"
}

run_small() {
  build asan-small && ctest --preset asan-small -LE emulation -j "$(nproc)"
}

run_emulation() {
  local status=0
  build tsan && ctest --preset tsan -L emulation -j "$(nproc)" || status=1
  build asan-small && ctest --preset asan-small -L emulation -j "$(nproc)" || status=1
  return "$status"
}

# What these files test is C++ through the bindings. The others drive browsers, Ray, Slurm, notebooks or
# compilers, which bear no preloaded sanitizer, and reach no C++ that these do not.
python_tests=(
  test_atari_model test_autocast test_captures test_contexts test_data test_devices test_episodes
  test_frame_segments test_histograms test_horizon test_minari test_mixers test_modules test_nn
  test_official test_ops test_ops_out test_own_model test_own_model_checks test_policies
  test_pretrained test_pretraining test_replay test_replay_files test_replays test_resume
  test_segments test_training test_transfer
)

run_python() {
  # The package too: for what it depends on.
  build asan && setup_package python without-tests && setup_extra test || return
  local stage=$ROOT/build/asan/python library files=("${python_tests[@]/#/tests/python/}")
  rm -rf "$stage"
  run_logged "installing the preset asan" cmake --install build/asan --component python --prefix "$stage" || return
  cp -r bindings/dmamba/. "$stage/dmamba/"
  # libstdc++ as well: the sanitizer looks for its __cxa_throw before Python has loaded it.
  library=$("${CXX:-g++}" -print-file-name=libasan.so):$("${CXX:-g++}" -print-file-name=libstdc++.so)
  # Python, torch and its libraries leak on purpose: leaks are looked for in the C++ tests.
  LD_PRELOAD=$library ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1 \
    UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONPATH=$stage \
    "$VENV/bin/python" -m pytest -p no:cacheprovider "${files[@]/%/.py}"
}

failed=()
for part in "${parts[@]}"; do
  say "-- $part"
  started=$SECONDS
  "run_$part" </dev/null || failed+=("$part")
  say "-- $part: $((SECONDS - started)) s"
done
say "sanitizers: $((${#parts[@]} - ${#failed[@]})) of ${#parts[@]} parts passed; failed: ${failed[*]:-none}"
((${#failed[@]} == 0))
