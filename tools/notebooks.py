"""Executes notebooks from top to bottom: `python tools/notebooks.py [--check] [NAME...]`.

Without --check the outputs are written into the notebooks, plots and all; with it nothing is
written. A notebook whose cell fails ends the program with the error and exit status 1.
"""

import argparse
import pathlib
import sys
import time

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
SECONDS = 600  # for one cell, only so that a hang ends


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


def without_times(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what changes at every execution though nothing else does."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def main() -> None:
    """Executes the notebooks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="files in notebooks/; all if none is named")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    paths = [FOLDER / name for name in arguments.names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        started = time.perf_counter()
        try:
            notebook = execute(path)
        except nbclient.exceptions.CellExecutionError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            sys.exit(1)
        if not arguments.check:
            nbformat.write(without_times(notebook), path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
