#!/usr/bin/env bash
# Runs all harnesses of a kit (scripts/nightly/fuzz.sh packs one) over mutated files, side by side.
#
#   run.sh SECONDS RUNS OUTPUT [READER...]
#
# RUNS inputs a reader, and a fifth of that through the front door, in 20 pieces with seeds of their own, which JOBS processes (default: all cores
# but two) take in turn; after SECONDS no more begin, and those that run end. Where a harness ends
# early, what did it is kept in OUTPUT/found, and the piece goes on. OUTPUT/table.md is the summary:
# inputs that were executed, processor seconds, largest memory, and what was found. TIMEOUT (default
# 10) is the seconds after which one input is a hang. PYTHON runs what is not compiled.
set -uo pipefail
kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pieces=20
python=${PYTHON:-python3}

# Leaves OUTPUT/log/READER-PIECE.txt and, in OUTPUT/results, a line "reader executed seconds peak_mb".
run_piece() {
  local reader=$1 piece=$2 runs=$3 deadline=$4 output=$5
  local log=$output/log/$reader-$piece.txt done=0 peak=0 left started=$SECONDS try more
  mkdir -p "$WORK/$reader" "$output/found/$reader"
  for try in {1..40}; do
    left=$((deadline - $(date +%s)))
    ((done < runs && left > 0)) || break
    case $reader in
      cpt | metadata)
        timeout "$left" "$python" "$kit/python/fuzz_python.py" "$reader" "$piece" "$runs" \
          "$kit/corpora/$reader" "$output/found/$reader" >"$log" 2>&1
        more=$(awk '/^(progress|inputs) /{n = $2} END{print n + 0}' "$log")
        peak=$(awk '/^inputs /{print $8}' "$log")
        ;;
      front-door)
        (cd "$WORK/$reader" && env -u HOME timeout "$left" "$kit/bin/front_door" \
          "$piece" "$runs" "$kit"/corpora/{d4rl,minari,converted}) >"$log" 2>&1 || (($? == 124)) ||
          cp "$WORK/$reader/front_door-$piece" "$output/found/$reader/died-$piece" 2>/dev/null
        find "$WORK/$reader" -name "front_door-$piece-died-?" -exec cp -t "$output/checker-died" {} +
        more=$(awk '/^(progress|inputs) /{n = $2} END{print n + 0}' "$log")
        ;;
      *)
        "$kit/bin/fuzz_$reader" -runs=$((runs - done)) -seed=$((1000 * piece + try)) \
          -max_total_time="$left" -max_len=36000 -timeout="${TIMEOUT:-10}" -rss_limit_mb=3000 \
          -malloc_limit_mb=100000 -print_final_stats=1 -verbosity=0 -reload=30 \
          -artifact_prefix="$output/found/$reader/" "$WORK/$reader" \
          "$kit/corpora/$reader" >"$log.new" 2>&1
        more=$(awk '/^stat::number_of_executed_units/{n = $2} END{print n + 0}' "$log.new")
        left=$(awk '/^stat::peak_rss_mb/{print $2}' "$log.new")
        ((${left:-0} <= peak)) || peak=$left
        grep -E '^SUMMARY|ERROR: |runtime error' "$log.new" >>"$output/found/$reader.txt"
        cat "$log.new" >>"$log"
        rm "$log.new"
        ;;
    esac
    done=$((done + ${more:-0}))
    [[ $reader == cpt || $reader == metadata || $reader == front-door ]] && break
  done
  echo "$reader $done $((SECONDS - started)) ${peak:-0}" >>"$output/results"
}

if [[ ${1:-} == --piece ]]; then
  shift
  run_piece "$@"
  exit
fi

(($# >= 3)) || { sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2; }
seconds=$1 runs=$2
mkdir -p "$3"
output=$(cd "$3" && pwd)
shift 3
readers=("$@")
(($#)) || readers=(yaml cpt d4rl minari converted replay front-door metadata safetensors)
mkdir -p "$output"/{log,found,checker-died}
WORK=$(mktemp -d) # the harnesses' growing corpora
export WORK
trap 'rm -rf "$WORK"' EXIT
: >"$output/results"
jobs=${JOBS:-$(($(nproc) > 3 ? $(nproc) - 2 : $(nproc)))}
# What libhdf5 or zlib ask of malloc without measure they are not given, as below a limit of memory;
# what our own code asks of new ends the harness. What is lost is a finding, after an input or at the
# end; libhdf5 loses what it built of damaged files, which is left out by the library's name.
export ASAN_OPTIONS=allocator_may_return_null=1:max_allocation_size_mb=1024:detect_leaks=1
export LSAN_OPTIONS=suppressions=$kit/lsan.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1
export LD_LIBRARY_PATH=$kit/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
deadline=$(($(date +%s) + seconds))
for ((piece = 1; piece <= pieces; ++piece)); do
  for reader in "${readers[@]}"; do
    share=$(((runs + pieces - 1) / pieces))
    [[ $reader != front-door ]] || share=$(((share + 4) / 5)) # each of its inputs starts a process
    echo "$reader $piece $share $deadline $output"
  done
done | xargs -P "$jobs" -L 1 "$kit/run.sh" --piece

{
  echo "| reader | inputs | process seconds | largest process, MB | findings |"
  echo "|---|---|---|---|---|"
  for reader in "${readers[@]}"; do
    findings=$(find "$output/found/$reader" -type f ! -path '*/place-*' ! -name '*.txt' 2>/dev/null | wc -l)
    awk -v reader="$reader" -v findings="$findings" '$1 == reader {n += $2; s += $3; if ($4 > m) m = $4}
      END {printf "| %s | %d | %d | %d | %d |\n", reader, n, s, m, findings}' "$output/results"
  done
} | tee "$output/table.md"
grep -h '^inputs' "$output"/log/front-door-*.txt 2>/dev/null |
  awk '{a += $4; r += $6; d += $8} END {if (NR) print "front door: accepted " a ", refused " r ", of these the checking process died of " d}' | tee -a "$output/table.md"
for file in "$output"/found/*.txt; do
  [[ -s $file ]] || continue
  echo "${file##*/}:"
  sed -E 's/==[0-9]+==//; s/0x[0-9a-f]+/ADDRESS/g' "$file" | grep SUMMARY | sort | uniq -c | sort -rn | head -20
done | tee -a "$output/table.md"
