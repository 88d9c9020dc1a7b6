#!/usr/bin/env bash
# The static checks; versions of the tools are pinned in the `lint` extra of pyproject.toml, and with
# their hashes in requirements/lint.txt.
#
#   scripts/lint.sh [--fix] [CHECK ...]     all checks, or those named (see the list at the end);
#                                           --fix lets the formatters and ruff rewrite files
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/setup.sh"
cd "$ROOT"

fix=0
checks=()
for argument in "$@"; do
  case $argument in
    --fix) fix=1 ;;
    -*) die "unknown option $argument; usage: scripts/lint.sh [--fix] [CHECK ...]" ;;
    *) checks+=("$argument") ;;
  esac
done

# files PATTERN...: the sources of those names, one a line.
files() {
  local pattern names=()
  for pattern in "$@"; do names+=(-o -name "$pattern"); done
  find src include kernels bindings tests examples scripts -type f \( "${names[@]:1}" \) | sort
}

check_clang-format() {
  local options=(--dry-run -Werror) sources=()
  ((fix)) && options=(-i)
  mapfile -t sources < <(files '*.cpp' '*.h' '*.cu' '*.cuh')
  ((${#sources[@]} == 0)) || clang-format "${options[@]}" "${sources[@]}"
}

check_ruff() {
  local options=()
  ((fix)) && options=(--fix)
  ruff check --quiet "${options[@]}" .
}

check_ruff-format() {
  local options=(--check)
  ((fix)) && options=()
  ruff format --quiet "${options[@]}" . || {
    say "not formatted; scripts/lint.sh --fix ruff-format does it: $(ruff format --check . || true)"
    return 1
  }
}

check_mypy() { mypy; }

check_shellcheck() {
  local sources=()
  mapfile -t sources < <(files '*.sh')
  shellcheck --external-sources .ci/run "${sources[@]}"
}

check_dockerfile() { hadolint Dockerfile; }

check_house-rules() { python scripts/lib/house_rules.py; }

# Links between the Markdown files, as a git host follows them; build_docs.sh checks the site's.
check_links() { python scripts/lib/check_links.py; }

check_notebooks() {
  local options=()
  ((fix)) && options=(--fix)
  python scripts/lib/notebooks.py "${options[@]}"
}

# requirements/*.txt against pyproject.toml; --fix asks the network where they differ.
check_requirements() {
  local options=()
  ((fix)) && options=(--fix)
  python scripts/lib/requirements.py "${options[@]}"
}

# Kernels know no framework: each compiles alone, with nothing but nvcc and the tree's root.
check_kernels() {
  local source sources=() object architecture status=0
  mapfile -t sources < <(files '*.cu')
  if ((${#sources[@]} == 0)); then
    say "no .cu files yet"
    return 0
  fi
  if ! command -v nvcc >/dev/null; then
    say "NOT CHECKED: ${#sources[@]} .cu files, and no nvcc on this machine"
    return 0
  fi
  object=$(mktemp --suffix=.o)
  for source in "${sources[@]}"; do
    architecture=90
    # Instructions of Hopper's alone.
    if [[ $source == kernels/token_chain/* || $source == */hopper*.cu ]]; then architecture=90a; fi
    nvcc -std=c++20 -gencode "arch=compute_$architecture,code=sm_$architecture" -I . \
      -c "$source" -o "$object" || status=1
  done
  rm -f "$object"
  return "$status"
}

all=(clang-format ruff ruff-format mypy shellcheck dockerfile house-rules links notebooks requirements kernels)
((${#checks[@]})) || checks=("${all[@]}")
for check in "${checks[@]}"; do
  [[ " ${all[*]} " == *" $check "* ]] || die "no check '$check'; there are: ${all[*]}"
done

choose_python
setup_venv lint
setup_extra lint

failed=()
for check in "${checks[@]}"; do
  say "-- $check"
  "check_$check" || failed+=("$check")
done
if ((${#failed[@]})); then
  say "lint: ${#failed[@]} of ${#checks[@]} checks failed: ${failed[*]}"
  exit 1
fi
say "lint: ${#checks[@]} checks passed"
