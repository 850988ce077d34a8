#!/usr/bin/env bash
# Every GPU test and benchmark, in parts of less than nine minutes that are done once:
#   benchmarks/gpu.sh [--minutes N] [--only PART]... [--again] [--no-install] [--dry-run] [--out DIR]
# Run it again to go on where it stopped. Needs a CUDA build of torch >= 2.11 (with its Triton); the other packages that
# it misses are named and installed with pip, and where pip cannot, the parts that need them are skipped with a reason.
# Results are JSON in benchmarks/results/gpu: environment.json, parts/PART.json with status, commit, device and
# versions, and the benchmarks' own files. Logs are in out/gpu.
#   --minutes N    stop after about N minutes, 3 or more (default 60)
#   --only PART    only parts whose name holds PART
#   --again        do parts again that are done
#   --no-install   install nothing
#   --dry-run      list the parts, their state and their commands
#   PYTHON         the interpreter (default python3)
# Exit status: 0 all done or skipped, 1 a part failed, 2 no CUDA device or wrong usage, 75 parts are left: run it again.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

PYTHON=${PYTHON:-python3}
OUT=benchmarks/results/gpu
LOGS=out/gpu
MINUTES=60
PART_SECONDS=525
LEAST_SECONDS=120
UNFINISHED=75
ONLY=()
AGAIN=0 DRY=0 INSTALL=--install

usage() { sed -n '2,14p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; }

while [ $# -gt 0 ]; do
    case $1 in
        --minutes | --only | --out)
            [ $# -ge 2 ] || { echo "Expected a value after $1. Got none." >&2; exit 2; }
            case $1 in --minutes) MINUTES=$2 ;; --only) ONLY+=("$2") ;; --out) OUT=$2 ;; esac
            shift ;;
        --again) AGAIN=1 ;;
        --dry-run) DRY=1 ;;
        --no-install) INSTALL= ;;
        -h | --help) usage; exit 0 ;;
        *) echo "Expected an option of this script. Got $1. See --help." >&2; exit 2 ;;
    esac
    shift
done
case $MINUTES in
    '' | *[!0-9]* | [012]) echo "Expected 3 minutes or more. Got '$MINUTES'. Pass for instance --minutes 30." >&2; exit 2 ;;
esac
DEADLINE=$((SECONDS + 60 * MINUTES))
DATA=${STRUCTPRUNE_DATA:-../shared/data}
FAILED=0 LEFT=0

wanted() { # name
    [ ${#ONLY[@]} -eq 0 ] && return 0
    local text
    for text in "${ONLY[@]}"; do case $1 in *"$text"*) return 0 ;; esac; done
    return 1
}

is_done() { grep -qs '"status": "done"' "$OUT/parts/$1.json"; }

record() { # part status reason seconds log command...
    local part=$1 status=$2 reason=$3 seconds=$4 log=$5
    shift 5
    "$PYTHON" -m benchmarks.gpu_record part "$part" "$status" --out "$OUT" --reason "$reason" --seconds "$seconds" \
        --log "$log" --run="$*"
    echo "== $part: $status${reason:+ ($reason)}, $seconds s"
}

# part NAME "modules it needs" "path it needs or -" COMMAND...; @M in the command stands for the minutes that it may
# take. A command that ends with status 75 has more to do and is run again.
part() {
    local name=$1 modules=$2 path=$3 lacking limit begun status state
    shift 3
    wanted "$name" || return 0
    if [ $DRY -eq 1 ]; then
        state="to do"
        is_done "$name" && state=done
        echo "$name [$state]: $*"
        return 0
    fi
    if is_done "$name" && [ $AGAIN -eq 0 ]; then echo "== $name: done before"; return 0; fi
    lacking=$("$PYTHON" -m benchmarks.gpu_record packages $modules)
    if [ -n "$lacking" ]; then record "$name" skipped "missing Python packages: $lacking" 0 - "$@"; return 0; fi
    if [ "$path" != - ] && [ ! -e "$path" ]; then record "$name" skipped "missing data: $path" 0 - "$@"; return 0; fi
    while :; do
        limit=$((DEADLINE - SECONDS))
        if [ $limit -lt $LEAST_SECONDS ]; then LEFT=1; echo "== $name: no time left"; return 0; fi
        [ $limit -gt $PART_SECONDS ] && limit=$PART_SECONDS
        begun=$SECONDS
        echo "== $name: $*"
        # A command that can end by itself is told to do so before it is stopped.
        timeout -k 10 $limit "${@//@M/$(((limit - 45) / 60))}" 2>&1 | tee "$LOGS/$name.log"
        status=${PIPESTATUS[0]}
        case $status in
            0) record "$name" done "" $((SECONDS - begun)) "$LOGS/$name.log" "$@"; return 0 ;;
            $UNFINISHED) record "$name" unfinished "more cells are left" $((SECONDS - begun)) "$LOGS/$name.log" "$@" ;;
            124 | 137) record "$name" unfinished "stopped after $limit s" $((SECONDS - begun)) "$LOGS/$name.log" "$@"
                LEFT=1; return 0 ;;
            *) record "$name" failed "exit status $status" $((SECONDS - begun)) "$LOGS/$name.log" "$@"
                FAILED=1; return 0 ;;
        esac
    done
}

export PYTHONUNBUFFERED=1 STRUCTPRUNE_DATA=$DATA
if [ $DRY -eq 1 ]; then
    echo "environment [always]: $PYTHON -m benchmarks.gpu_record environment --out $OUT $INSTALL"
else
    mkdir -p "$OUT/parts" "$LOGS" || exit 2
    "$PYTHON" -m benchmarks.gpu_record environment --out "$OUT" $INSTALL || exit 2
fi

BASE="torch numpy scipy ortools cvxpy highspy safetensors rich matplotlib sklearn"
for file in $(grep -rl --include='test_*.py' 'pytest\.mark\.gpu' tests | sort); do
    name=${file#tests/}
    name=${name%.py}
    part "tests-${name//\//-}" "$BASE pytest hypothesis" - "$PYTHON" -m pytest -m gpu -q -rs -p no:cacheprovider "$file"
done

GRID=("$PYTHON" -m benchmarks.kernels --device cuda --resume)
part kernels-roofs "torch numpy triton" - "${GRID[@]}" --roofs --out "$OUT/kernels"
part kernels-grid "torch numpy scipy triton" - "${GRID[@]}" --minutes @M --out "$OUT/kernels"
part kernels-tuned "torch numpy scipy triton" - "${GRID[@]}" --tune --minutes @M --out "$OUT/kernels-tuned" \
    --only "4096, 8192" "ViT-B" "MLP 1024"
part demo "$BASE" - "$PYTHON" -m structprune demo --out "$LOGS/demo"
part latency "$BASE" - "$PYTHON" -m benchmarks.gpu_latency --out "$OUT/latency.json"
part limits-digits "$BASE" - "$PYTHON" -m benchmarks.limits --task digits-5e-4 --device cuda --resume \
    --out "$OUT/limits" --work "$LOGS/limits"
part limits-resnet20 "$BASE" "$DATA" "$PYTHON" -m benchmarks.limits --task resnet20 --no-truth --device cuda --resume \
    --out "$OUT/limits" --work "$LOGS/limits"
part kernels-host "torch numpy scipy llvmlite" - "$PYTHON" -m benchmarks.kernels --resume --minutes @M \
    --out "$OUT/kernels-host" --only 1024x1024 3072x768 "conv 3x3" --without d=0.05
# Takes all the time that is left: its most telling cells come first (ResNet-20, 8 x 8 blocks, 95 %).
part blocks-cifar "$BASE accelerate" "$DATA" "$PYTHON" -m benchmarks.blocks --preset cifar --device cuda --resume \
    --minutes @M --out "$OUT/blocks"

[ $DRY -eq 1 ] && exit 0
[ $FAILED -eq 1 ] && exit 1
[ $LEFT -eq 1 ] && exit $UNFINISHED
exit 0
