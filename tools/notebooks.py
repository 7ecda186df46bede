"""Executes notebooks from top to bottom: `python tools/notebooks.py [--check|--types] [NAME...]`.

Without --check the outputs are written into the notebooks, plots and all; with it nothing is
written. With --types nothing is executed: mypy reads the cells, which takes seconds and finds what
calls the package as it no longer is. A notebook whose cell fails ends the program with the error
and exit status 1.
"""

import argparse
import concurrent.futures
import pathlib
import sys
import tempfile
import time

import nbclient
import nbformat
from mypy import api as mypy_api

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
SECONDS = 600  # for one cell, only so that a hang ends
NUM_AT_ONCE = 2  # each waits for one core much of the time
# What cells may do that modules may not: use a name again for another type, pass numpy's arrays.
ALLOWED = (
    "arg-type",
    "assignment",
    "call-overload",
    "index",
    "list-item",
    "operator",
    "union-attr",
)


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel that was started in its folder.

    Raises:
      CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(path.parent)}}
    )
    return client.execute()


def run(path: pathlib.Path, *, is_kept: bool) -> float:
    """Executes one, writes what it shows if that is kept, and returns the seconds it took."""
    started = time.perf_counter()
    notebook = execute(path)
    if is_kept:
        nbformat.write(without_times(notebook), path)
    return time.perf_counter() - started


def without_times(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what changes at every execution though nothing else does."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def type_errors(paths: list[pathlib.Path]) -> str:
    """What mypy says of the cells' code, a line each with notebook, cell and line; or nothing.

    Raises:
      RuntimeError: mypy could not run.
    """
    flags = ["--config-file=", "--check-untyped-defs", "--ignore-missing-imports"]
    flags += ["--follow-imports=silent", "--no-error-summary", "--hide-error-context"]
    flags += [f"--disable-error-code={code}" for code in ALLOWED]
    flags += [f"--cache-dir={FOLDER.parent / '.mypy_cache' / 'notebooks'}"]
    with tempfile.TemporaryDirectory() as folder:
        places: dict[str, list[str]] = {}
        for path in paths:
            module = pathlib.Path(folder, f"notebook_{path.stem}.py")
            cells = [
                cell.source.rstrip()
                for cell in nbformat.read(path, 4).cells
                if cell.cell_type == "code"
            ]
            places[str(module)] = [
                f"{path.name}, code cell {number}, line {line}"
                for number, source in enumerate(cells, start=1)
                for line in range(1, len(source.splitlines()) + 1)
            ]
            module.write_text("".join(f"{source}\n" for source in cells))
        found, failure, _ = mypy_api.run([*flags, *places])
    if failure:
        raise RuntimeError(f"mypy did not run: {failure}")
    lines = []
    for line in found.splitlines():
        file, number, told = line.split(":", 2)
        lines.append(f"{places[file][int(number) - 1]}:{told}")
    return "\n".join(lines)


def main() -> None:
    """Executes or reads the notebooks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="files in notebooks/; all if none is named")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="write nothing")
    how.add_argument("--types", action="store_true", help="execute nothing, check types")
    arguments = parser.parse_args()
    paths = [FOLDER / name for name in arguments.names] or sorted(FOLDER.glob("*.ipynb"))
    if arguments.types:
        sys.exit(type_errors(paths) or None)
    with concurrent.futures.ProcessPoolExecutor(NUM_AT_ONCE) as pool:
        running = {path: pool.submit(run, path, is_kept=not arguments.check) for path in paths}
        for path, one in running.items():
            try:
                print(f"{path.name}: {one.result():.0f} s", flush=True)
            except nbclient.exceptions.CellExecutionError as error:
                print(f"{path.name}: {error}", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                sys.exit(1)


if __name__ == "__main__":
    main()
