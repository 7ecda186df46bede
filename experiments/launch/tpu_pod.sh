#!/bin/sh
# A Cloud TPU slice with several hosts: create, install, run on every host, stop, delete.
#
#   export PROJECT=my-project ZONE=us-west4-a TPU=my-slice SHARED=/mnt/shared/deepseek_jax
#   experiments/launch/tpu_pod.sh create v5litepod-16 v2-alpha-tpuv5-lite
#   experiments/launch/tpu_pod.sh install
#   experiments/launch/tpu_pod.sh run --config=experiments/configs/gpu_small.py:capacity \
#       --workdir=runs/slice --config.mesh.data=2 --config.mesh.expert=8
#   experiments/launch/tpu_pod.sh stop          # SIGTERM: save at the next step, exit 0
#   experiments/launch/tpu_pod.sh delete
#
# SHARED is this repository on a file system that every host has mounted there. Each host gets an
# environment of its own, with a Python and packages that uv fetches, of the same versions. Not
# run yet.
set -eu

: "${PROJECT:?}" "${ZONE:?}" "${TPU:?}"
: "${PYTHON_VERSION:=3.12}"
environment='$HOME/deepseek_jax_env'
uv='$HOME/.local/bin/uv'

on() {
    gcloud compute tpus tpu-vm ssh "$TPU" --project="$PROJECT" --zone="$ZONE" --worker="$1" \
        --command="$2"
}

action=${1:?create, install, run, stop or delete}
shift
case $action in
    create)
        gcloud compute tpus tpu-vm create "$TPU" --project="$PROJECT" --zone="$ZONE" \
            --accelerator-type="$1" --version="$2"
        ;;
    install)
        make_env="python3 -m pip install --user uv && $uv venv --python $PYTHON_VERSION $environment"
        install="$uv pip install --python $environment/bin/python"
        # Host 0 resolves the versions, and all take these.
        on 0 "$make_env && cd ${SHARED:?} && $uv build --wheel --out-dir dist &&
            $install \"\$(ls dist/*.whl)[tpu]\" &&
            $uv pip freeze --python $environment/bin/python | grep -v deepseek > dist/versions.txt"
        on all "test -d $environment || { $make_env; }
            cd $SHARED && $install -r dist/versions.txt"
        ;;
    run)
        on all "cd ${SHARED:?} && $environment/bin/python -m experiments.main --distributed $*"
        ;;
    stop)
        on all "pkill -TERM -u \$(id -u) -f '^[^ ]*python -m experiments[.]main'"
        ;;
    delete)
        gcloud compute tpus tpu-vm delete "$TPU" --project="$PROJECT" --zone="$ZONE"
        ;;
    *)
        echo "error: $action: not one of create, install, run, stop, delete" >&2
        exit 2
        ;;
esac
