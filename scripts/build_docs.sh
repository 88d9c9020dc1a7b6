#!/usr/bin/env bash
# Builds the documentation into build/docs/html: warnings are errors, and every link is checked
# without a network. Sets the package up as quickstart.sh does, for the references are made from it.
#
#   scripts/build_docs.sh [--fix]     --fix writes docs/configuration.md and docs/images anew
#
# The tools' versions are pinned in the `docs` extra of pyproject.toml, and with all that they need in
# requirements/docs.txt.
set -euo pipefail
# shellcheck source=scripts/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/setup.sh"
cd "$ROOT"

fix=0
case $* in
  '') ;;
  --fix) fix=1 ;;
  *) die "unknown arguments $*; usage: scripts/build_docs.sh [--fix]" ;;
esac

choose_python
setup_system 1/4 without-tests
setup_venv 2/4
setup_torch 3/4
setup_extra docs # before the package: what it needs is then there, pinned
setup_package 4/4 without-tests

output=$ROOT/build/docs
drawings=$output/images
rm -rf "$output"
if ((fix)); then
  python scripts/lib/configuration_page.py >docs/configuration.md
  python scripts/make_drawings.py docs/images
else
  mkdir -p "$output"
  python scripts/lib/configuration_page.py >"$output/configuration.md"
  python scripts/make_drawings.py "$drawings"
  { diff -u docs/configuration.md "$output/configuration.md" && diff -ru docs/images "$drawings"; } ||
    die "the files above are made by programs and are not what these make now:" \
      "scripts/build_docs.sh --fix writes them"
fi
python -m sphinx --builder html --doctree-dir "$output/doctrees" --fresh-env --quiet \
  --fail-on-warning --keep-going docs "$output/html"
python scripts/lib/check_links.py "$output/html" || die "the links above are broken"
say "documentation: $output/html/index.html"
