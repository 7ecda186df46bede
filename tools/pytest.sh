#!/bin/sh
# Runs pytest on the CPU; programs once compiled are kept in .cache, so that a second run is
# several times faster.
#
#   tools/pytest.sh PYTHON [PYTEST ARGUMENT...]
set -eu
python="$1"
shift
export JAX_PLATFORMS=cpu
export JAX_COMPILATION_CACHE_DIR="$(pwd)/.cache/jax"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
exec "$python" -m pytest "$@"
