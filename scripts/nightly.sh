#!/usr/bin/env bash
# What takes too long for every change: each file of scripts/nightly/ is a part, run in a process of
# its own; the next one begins whatever became of the one before. docs/reliability.md says what each shows.
#
#   scripts/nightly.sh                     all of it
#   scripts/nightly.sh fuzz kills          some parts
#   scripts/nightly.sh --list              their names, and what each one does
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

parts=(scripts/nightly/*.sh)
if [[ ${1:-} == --list ]]; then
  for part in "${parts[@]}"; do
    name=${part##*/}
    printf '%-14s%s\n' "${name%.sh}" "$(sed -n '2s/^# //p' "$part")"
  done
  exit
fi
if (($#)); then
  parts=("${@/%/.sh}")
  parts=("${parts[@]/#/scripts/nightly/}")
fi
for part in "${parts[@]}"; do
  [[ -f $part ]] || {
    echo "error: there is no $part; --list names the parts" >&2
    exit 2
  }
done

failed=()
for part in "${parts[@]}"; do
  name=${part##*/}
  echo "---- ${name%.sh}"
  "$part" </dev/null || failed+=("${name%.sh}")
done
echo "$((${#parts[@]} - ${#failed[@]})) of ${#parts[@]} parts passed; failed: ${failed[*]:-none}"
((${#failed[@]} == 0))
