"""Runs a peer of a benchmark in a Python of its own: a request in, what it measured out."""

import json
import pathlib
import subprocess
import tempfile
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(
    module: str, request: dict[str, Any], *, python: str, package: str
) -> dict[str, Any] | None:
    """What a peer measured; None if that Python does not have it.

    Args:
      module: of the program, which takes the paths of a request and of a result.
      request: written as JSON.
      python: the Python that runs it.
      package: that it needs.

    Raises:
      RuntimeError: the package is there and the program fails.
      subprocess.CalledProcessError: that Python itself fails.
    """
    find = f"import importlib.util; print(importlib.util.find_spec({package!r}) is not None)"
    has_package = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True)
    if has_package.stdout.strip() != "True":
        return None
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / name for name in ("request.json", "result.json")]
        paths[0].write_text(json.dumps(request))
        command = [python, "-m", module, *map(str, paths)]
        ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{module} ended with {ended.returncode}: {ended.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(paths[1].read_text())
        return found
