#!/usr/bin/env bash
# Every GPU figure of RESULTS.md, unattended: benchmarks/gpu.sh [--smoke] [FOLDER]
# Steps of under ten minutes; each writes FOLDER/STEP.json and is skipped where that is there, so the same command goes
# on after an interruption. --smoke runs every step on the CPU with tiny sizes: the script's own test, no figures.
set -u
smoke=()
[ "${1:-}" = --smoke ] && { smoke=(--smoke); shift; }
folder=$(realpath -m "${1:-gpu-results}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
mkdir -p "$folder"
failed=0
todo=()
for step in $("$python" -m benchmarks.gpu --list); do
    [ -s "$folder/$step.json" ] || todo+=("$step")
done
if [ ${#smoke[@]} -gt 0 ]; then
    [ ${#todo[@]} -eq 0 ] || "$python" -m benchmarks.gpu --smoke --folder "$folder" "${todo[@]}" || failed=1
else
    for step in ${todo[@]+"${todo[@]}"}; do
        echo "== $step ($(date -u +%H:%M:%S))"
        timeout 600 "$python" -m benchmarks.gpu --folder "$folder" "$step" >"$folder/$step.log" 2>&1 || {
            echo "failed: $folder/$step.log"
            failed=1
        }
    done
fi
"$python" -m benchmarks.gpu --folder "$folder" --table
exit $failed
