#!/bin/bash
# Two machines of 8 GPUs under SLURM: sbatch experiments/launch/slurm.sh --config=... --workdir=...
#
#   sbatch experiments/launch/slurm.sh --config=experiments/configs/r1_12b.py \
#       --workdir=runs/r1_12b --config.mesh.expert=16 --config.train.num_microbatches=2
#
# One task for each GPU: JAX (0.10) gives a process of SLURM the one device whose number is its
# SLURM_LOCALID, so every task must see all GPUs of its node (no --gpus-per-task, no --gpu-bind).
# Submit from the repository's folder, on a file system that all nodes see. Not run yet.
#
# A run that gets SIGTERM saves and ends with exit code 0, which SLURM takes for finished, and does
# not queue it again: submit it again to go on.
#SBATCH --job-name=deepseek_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -eu

export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
# gRPC would send the processes' own messages through a proxy.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

# --signal sends SIGTERM to the tasks 5 minutes before the time is up: they save, and exit 0.
# When a task fails, --kill-on-bad-exit ends the rest; submit again to go on.
exec srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m experiments.main --distributed "$@"
