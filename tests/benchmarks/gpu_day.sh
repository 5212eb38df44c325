#!/usr/bin/env bash
# All that needs a GPU, in one command: tests, then tables of the loss, the step and the host time.
#
#   bash tests/benchmarks/gpu_day.sh OUT                 # below 9 minutes
#   bash tests/benchmarks/gpu_day.sh OUT step host       # these parts only
#   MODELS=vit_l_14 bash tests/benchmarks/gpu_day.sh OUT step
#
# Needs no network and no installation of this project: a python that has torch with CUDA, triton,
# pytest and what pipeline imports (README.md beside this file); PYTHON=... names it. A part that
# fails or runs out of time leaves its log and the tables that it had, and the others run.
set -u
[ $# -ge 1 ] || { echo "usage: bash tests/benchmarks/gpu_day.sh OUT [tests] [loss] [step] [host]" >&2; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
shift
parts=${*:-tests loss step host}
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-}
for candidate in .venv/bin/python python3; do
    [ -n "$python" ] && break
    "$candidate" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null && python=$candidate
done
[ -n "$python" ] || { echo "no python with a CUDA torch found: name one by PYTHON=..." >&2; exit 2; }
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
total_s=${TOTAL_S:-530}
summary=$out/summary.txt
: > "$summary"

say() { echo "$*" | tee -a "$summary"; }

# part NAME SECONDS COMMAND...: never past what is left of the whole
part() {
    local name=$1 limit=$2 left=$((total_s - SECONDS)) began=$SECONDS code
    shift 2
    [ "$left" -gt 15 ] || { say "$name: left out, $left s left"; return; }
    [ "$limit" -le "$left" ] || limit=$left
    timeout --kill-after=10 "$limit" "$@" >> "$out/$name.log" 2>&1
    code=$?
    case $code in
        0) say "$name: done in $((SECONDS - began)) s" ;;
        124|137) say "$name: out of time after $limit s; what it had is there" ;;
        *) say "$name: failed with $code after $((SECONDS - began)) s; $name.log" ;;
    esac
}

loss() { # a table a size, so that a slow one loses only itself
    local size
    : > "$out/loss.md"
    for size in 8192 32768; do
        part loss 60 "$python" -m tests.benchmarks.bench_loss --sizes "$size" --out "$out/loss_$size.md"
        [ -f "$out/loss_$size.md" ] && cat "$out/loss_$size.md" >> "$out/loss.md" && rm "$out/loss_$size.md"
    done
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv 2>&1 | tee -a "$summary"
"$python" -c 'import sys, torch; print("python", sys.version.split()[0], "torch", torch.__version__)' | tee -a "$summary"
for name in $parts; do
    case $name in
        tests) part tests 120 "$python" -m pytest tests/gpu -m gpu -q -p no:cacheprovider ;;
        loss) loss ;;
        step) part step 300 "$python" -m tests.benchmarks.bench_step --models "${MODELS:-vit_b_32,vit_b_16,vit_l_14}" --out "$out/step.md" ;;
        host) part host 60 "$python" -m tests.benchmarks.bench_host --out "$out/host.md" ;;
        *) say "$name: no such part (tests, loss, step, host)" ;;
    esac
done
say "all: $SECONDS s"
