#!/usr/bin/env bash
# Every GPU figure of RESULTS.md, unattended: benchmarks/gpu.sh [--smoke] [FOLDER]
# Steps of under ten minutes; each writes FOLDER/STEP.json and is skipped where that is there, so the same command goes
# on after an interruption. --smoke runs every step on the CPU with tiny sizes: the script's own test, no figures.
set -eu
smoke=()
[ "${1:-}" = --smoke ] && { smoke=(--smoke); shift; }
folder=$(realpath -m "${1:-gpu-results}")
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu ${smoke[@]+"${smoke[@]}"} --folder "$folder"
