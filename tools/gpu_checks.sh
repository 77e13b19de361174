#!/usr/bin/env bash
# Checks that need a GPU, in under 10 minutes, with one JSON file as the result.
#
#     tools/gpu_checks.sh [gpu.json]                   # on a machine with CUDA and onnxruntime-gpu
#     DEVICE=cpu tools/gpu_checks.sh /tmp/dry.json     # the same steps on the CPU, small: a rehearsal
#
# PYTHON names the interpreter (default: .venv/bin/python, else python3), which must have onnxprune[gpu,train,data] and
# pytest. Nothing is downloaded. Every step has a time limit of its own, and a step that fails does not end the others;
# its last lines are in the JSON. TensorRT is benchmarked where the provider loads.
set -u

cd "$(dirname "${BASH_SOURCE[0]}")/.."
device="${DEVICE:-cuda}"
out="${1:-${OUT:-.}/gpu.json}"
python="${PYTHON:-}"
if [ -z "$python" ]; then
    python=python3
    [ -x .venv/bin/python ] && python=.venv/bin/python
fi

parts="$(mktemp -d)"
trap 'rm -rf "$parts"' EXIT

step() { # name, seconds, command ...
    local name="$1" limit="$2" start status
    shift 2
    start="$(date +%s)"
    PYTHONPATH=tools timeout "$limit" "$@" > "$parts/$name.log" 2>&1
    status=$?
    echo "$name: exit status $status after $(($(date +%s) - start)) s (limit $limit s)"
    printf '{"status": %d, "seconds": %d, "limit": %d}\n' "$status" "$(($(date +%s) - start))" "$limit" > "$parts/$name.step"
}

if [ "$device" = cpu ]; then
    step tests 120 "$python" -m pytest -q -m 'not gpu' tests/execution/test_timing.py
else
    step tests 150 "$python" -m pytest -q -m gpu
fi
step machine 30 "$python" tools/gpu_checks.py machine "$device" "$parts/machine.json"
step sensitivity 100 "$python" tools/gpu_checks.py sensitivity "$device" "$parts/sensitivity.json"
step bench 180 "$python" tools/gpu_checks.py bench "$device" "$parts/bench.json"
step retrain 120 "$python" tools/gpu_checks.py retrain "$device" "$parts/retrain.json"

"$python" tools/gpu_checks.py collect "$device" "$parts" "$out"
