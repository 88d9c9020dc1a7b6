# shellcheck shell=bash
# check_cuda_glue: does src/ops/cuda compile with this environment's torch? Sourced by test.sh.
#
# A torch for the CPU brings the c10/cuda headers too, so that a machine without a GPU, whose build
# leaves these files out, still checks them: nvcc hands a .cpp to the host compiler with CUDA's
# headers, and -fsyntax-only is the whole of the compiler's semantic analysis, templates included.

# Prints everything that the outcome depends on.
glue_fingerprint() {
  {
    torch_version "$VENV/bin/python"
    nvcc --version
    "${CXX:-g++}" --version
    find "$ROOT/src/ops" "$ROOT/include" "$ROOT/kernels" -name '*.h' -print0 |
      LC_ALL=C sort -z | xargs -0 sha256sum
    sha256sum "$ROOT"/src/ops/cuda/*.cpp
  } | sha256sum | cut -d ' ' -f 1
}

check_cuda_glue() {
  local torch source fingerprint stamp=$VENV_STATE/glue status=0
  if ! command -v nvcc >/dev/null; then
    say "CUDA glue: NOT CHECKED: no nvcc on this machine"
    return 0
  fi
  fingerprint=$(glue_fingerprint)
  if [[ -f $stamp && $(<"$stamp") == "$fingerprint" ]]; then
    say "CUDA glue: compiled from these sources already"
    return 0
  fi
  torch=$("$VENV/bin/python" -c '
import importlib.util
print(importlib.util.find_spec("torch").submodule_search_locations[0])')
  for source in src/ops/cuda/*.cpp; do
    nvcc -ccbin "${CXX:-g++}" -std=c++20 -Xcompiler=-fsyntax-only,-Wall,-Wextra,-Wno-unused-parameter,-Werror \
      -DC10_CUDA_NO_CMAKE_CONFIGURE_FILE -I . -I include -isystem "$torch/include" \
      -isystem "$torch/include/torch/csrc/api/include" -c "$source" -o /dev/null || {
      say "CUDA glue: $source does not compile"
      status=1
    }
  done
  ((status)) || say "$fingerprint" >"$stamp"
  ((status)) || say "CUDA glue: compiles with torch $(torch_version "$VENV/bin/python")"
  return "$status"
}
