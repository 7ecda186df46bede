#!/bin/sh
# Prints a Python interpreter that can make a virtual environment.
#
#   tools/find_python.sh          any Python >= 3.11, tested versions first; PYTHON=... decides
#   tools/find_python.sh 3.12     exactly this version
#
# Looks on PATH, then among the versions of pyenv. Exits 1 with advice if there is none.
set -eu
exact="${1:-}"

usable() {
    command -v "$1" >/dev/null 2>&1 && "$1" - "$exact" >/dev/null 2>&1 <<'PY'
import sys
import ensurepip, venv

exact = sys.argv[1]
ours = "%d.%d" % sys.version_info[:2]
sys.exit(ours != exact if exact else sys.version_info < (3, 11))
PY
}

absolute() {
    "$1" -c 'import sys; print(sys.executable)'
}

if [ -z "$exact" ] && [ -n "${PYTHON:-}" ]; then
    if usable "$PYTHON"; then
        absolute "$PYTHON"
        exit 0
    fi
    echo "PYTHON=$PYTHON: not a Python >= 3.11 with the modules venv and ensurepip" >&2
    exit 1
fi

for name in ${exact:-3.11 3.12 3.13 3}; do
    if usable "python$name"; then
        absolute "python$name"
        exit 0
    fi
done
if usable python; then
    absolute python
    exit 0
fi
if command -v pyenv >/dev/null 2>&1; then
    for version in ${exact:-3.11 3.12 3.13 3.14}; do
        for folder in "$(pyenv root)/versions/$version" "$(pyenv root)/versions/$version".*; do
            if usable "$folder/bin/python"; then
                echo "$folder/bin/python"
                exit 0
            fi
        done
    done
fi

wanted="Python ${exact:->= 3.11}"
cat >&2 <<TXT
No $wanted with the modules venv and ensurepip was found on PATH or in pyenv. Any of these helps:
  Debian, Ubuntu   apt install python${exact:-3} python${exact:-3}-venv
  macOS            brew install python@${exact:-3.12}
  pyenv            pyenv install ${exact:-3.12}
TXT
[ -n "$exact" ] || echo "or name one: make PYTHON=/path/to/python3 ..." >&2
exit 1
