#!/bin/sh
# Makes a virtual environment with this package in it, once.
#
#   tools/environment.sh DIR [VERSION [REQUIREMENT...]]
#
# DIR          the environment; made anew if it is missing, broken, or of another Python than asked
# VERSION      exact Python version, such as 3.12; "" takes any >= 3.11, or PYTHON=... if given
# REQUIREMENT  further pip requirements, such as jax==0.11.2
#
# A stamp in DIR holds what was installed, so that a second call does nothing and a changed
# setup.py, Python or requirement installs again.
set -eu
folder="$1"
exact="${2:-}"
if [ $# -gt 2 ]; then shift 2; else set --; fi

wish="$exact"
[ -n "$exact" ] || wish="${PYTHON:-}"
state() {
    echo "setup.py $(cksum <setup.py)"
    echo "requirements $*"
    # The folder is part of the state: an environment that was moved has wrong paths inside.
    echo "folder $(pwd)/$folder"
}
stamp="$folder/.installed"

if [ -n "$wish" ] && [ -x "$folder/bin/python" ]; then
    python="$(tools/find_python.sh "$exact")"
    base='import sys; print(sys.base_prefix)'
    if [ "$("$python" -c "$base")" != "$("$folder/bin/python" -c "$base" || true)" ]; then
        rm -f "$stamp"
    fi
fi
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(state "$@")" ] && "$folder/bin/python" -c ''; then
    exit 0
fi

[ -n "${python:-}" ] || python="$(tools/find_python.sh "$exact")"
echo "Making $folder with $("$python" --version) and installing; once, a few minutes ..."
if [ -e "$folder" ] && [ ! -f "$folder/pyvenv.cfg" ]; then
    echo "$folder exists and is not a virtual environment; remove it or choose another" >&2
    exit 1
fi
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --quiet --disable-pip-version-check -e ".[dev]" "$@"
state "$@" >"$stamp"
