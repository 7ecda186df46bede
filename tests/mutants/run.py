"""Shows that every mutant is caught.

Run:    python -m tests.mutants.run [--only TEXT] [--jobs N]

The package and its tests are copied to temporary directories; the working tree is never
edited. First the named tests must pass on the copy without a bug, then fail on each with one.
The exit status is 1 if they do not, or if a snippet no longer occurs exactly once.

A new table: make a module with a tuple `MUTANTS` beside `moe.py` and add it to `TABLES`.
"""

import argparse
import collections
import concurrent.futures
import functools
import pathlib
import shutil
import sys
import tempfile

from tests.mutants import (
    attention,
    decoding,
    flash,
    grouped,
    moe,
    objectives,
    parallel,
    routing,
    stages,
)
from tests.mutants.mutant import Mutant, Verdict, run_tests

TABLES = (
    routing.MUTANTS,
    moe.MUTANTS,
    grouped.MUTANTS,
    attention.MUTANTS,
    flash.MUTANTS,
    parallel.MUTANTS,
    objectives.MUTANTS,
    stages.MUTANTS,
    decoding.MUTANTS,
)
ROOT = pathlib.Path(__file__).parents[2]
COPIED = ("deepseek_jax", "experiments", "tests")


def copy_tree(target: pathlib.Path) -> None:
    """Copies what the tests need."""
    for name in COPIED:
        shutil.copytree(
            ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "mutants")
        )
    shutil.copy(ROOT / "pyproject.toml", target)


def on_copy(tests: tuple[str, ...], compiled: pathlib.Path, mutant: Mutant | None) -> Verdict:
    """Runs tests on a copy of the tree, with the bug in it if there is one."""
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        copy_tree(root)
        if mutant is not None:
            path = root / mutant.path
            path.write_text(mutant.mutated(path.read_text()))
        return run_tests(root, tests, compiled=compiled)


def check_table(mutants: list[Mutant]) -> None:
    """Raises a ValueError for a name that occurs twice or a snippet that is not there once."""
    names = collections.Counter(mutant.name for mutant in mutants)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise ValueError(f"mutants with the same name: {repeated}")
    for mutant in mutants:
        mutant.mutated((ROOT / mutant.path).read_text())


def run(mutants: list[Mutant], *, num_jobs: int) -> bool:
    """Prints a line for each mutant. Returns whether all of them were caught."""
    check_table(mutants)
    named = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    size = -(-len(named) // num_jobs)
    shares = [named[start : start + size] for start in range(0, len(named), size)]
    with (
        tempfile.TemporaryDirectory() as compiled,
        concurrent.futures.ThreadPoolExecutor(num_jobs) as pool,
    ):
        judge = functools.partial(on_copy, compiled=pathlib.Path(compiled))
        sound = list(pool.map(functools.partial(judge, mutant=None), shares))
        for verdict in sound:
            if verdict.status != 0:
                print(f"the named tests do not pass without a mutant:\n{verdict.output}")
                return False
        seconds = max(verdict.seconds for verdict in sound)
        print(f"{len(named)} tests pass without a mutant in {seconds:.0f} s")
        num_caught = 0
        verdicts = pool.map(lambda mutant: judge(mutant.tests, mutant=mutant), mutants)
        for mutant, verdict in zip(mutants, verdicts, strict=True):
            _tell(mutant, verdict)
            num_caught += verdict.caught
    print(f"{num_caught} of {len(mutants)} mutants caught")
    return num_caught == len(mutants)


def _tell(mutant: Mutant, verdict: Verdict) -> None:
    place = pathlib.Path(mutant.path).stem
    result = "caught" if verdict.caught else "SURVIVED" if verdict.status == 0 else "BROKEN"
    print(f"{result:8} {verdict.seconds:5.1f} s  {place:14} {mutant.name}")
    print(f"{'':27}by {verdict.failure}" if verdict.caught else verdict.output, flush=True)


def main() -> None:
    """Runs all mutants, or those whose name or file holds a text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run mutants whose name or file holds this")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    arguments = parser.parse_args()
    mutants = [mutant for table in TABLES for mutant in table]
    chosen = [m for m in mutants if arguments.only in m.name or arguments.only in m.path]
    if not chosen:
        parser.error(f"no mutant's name or file holds {arguments.only!r}")
    sys.exit(not run(chosen, num_jobs=arguments.jobs))


if __name__ == "__main__":
    main()
