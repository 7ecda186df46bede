#!/bin/sh
# Runs the fast tests on another Python and another jax, in an environment of their own; of those
# that are run with and without jit, with jit only.
#
#   tools/test_on_python.sh PYTHON JAX      such as 3.12 0.11.2, or 3.12 '0.12.*' for the newest
set -eu
python="$1"
jax="$2"
folder=".venv-$python-jax-${jax%.\*}"
tools/environment.sh "$folder" "$python" "jax==$jax"
"$folder/bin/python" tools/versions.py
HYPOTHESIS_PROFILE=few tools/pytest.sh "$folder/bin/python" -n 2 --dist loadfile --no-loadscope-reorder -m 'not deep and not slow' -k 'not without_jit'
