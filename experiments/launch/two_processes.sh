#!/bin/sh
# One run of two processes on this machine, as on two hosts; CPU, two devices a process.
#
#   experiments/launch/two_processes.sh --config=experiments/configs/laptop.py \
#       --workdir=runs/two --config.mesh.data=2 --config.mesh.expert=2
#
# Output of process I goes to WORKDIR.process_I.log beside the run. PYTHON and PORT (of process 0)
# may be set. Exit code: 0 if both processes end well, else that of the first that does not. SIGTERM to
# the script stops both at the same step, saved, and is an end with 0 too; the same command goes on.
set -eu

python=${PYTHON:-.venv/bin/python}
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
workdir=
for argument in "$@"; do
    case $argument in
        --workdir=*) workdir=${argument#--workdir=} ;;
    esac
done
[ -n "$workdir" ] || { echo "error: give --workdir=DIR" >&2; exit 2; }
mkdir -p "$(dirname "$workdir")"

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=2"

start() {
    "$python" -m experiments.main "$@" --distributed --coordinator="127.0.0.1:$port" \
        --num_processes=2 --process_id="$id" > "$workdir.process_$id.log" 2>&1 &
}

id=0; start "$@"; first=$!
id=1; start "$@"; second=$!
# What stops this script asks both processes to finish the step, save and end.
trap 'kill -TERM "$first" "$second" 2> /dev/null || true' TERM INT

# A trapped signal ends `wait` before the process has ended.
code_of() {
    while :; do
        code=0
        wait "$1" || code=$?
        kill -0 "$1" 2> /dev/null || return "$code"
    done
}

codes=
for process in "$first" "$second"; do
    code=0
    code_of "$process" || code=$?
    codes="$codes $code"
done
cat "$workdir.process_0.log"
for code in $codes; do
    [ "$code" -eq 0 ] || { tail -n 3 "$workdir.process_1.log" >&2; exit "$code"; }
done
