"""A likely bug: where it goes, what it replaces, and which tests must notice."""

import dataclasses
import multiprocessing
import os
import pathlib
import sys
import time

import jax
import pytest

# Processes are forked from one that has imported what takes long, and nothing of ours.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["chex", "flax.linen", "hypothesis", "optax", "pytest"])
_OUTPUT = "output.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of one source file.

    Attributes:
      name: the bug in a few words.
      path: the file, from the root of the repository.
      snippet: source text that occurs exactly once in the file.
      replacement: what stands there instead.
      tests: pytest node ids; at least one must fail.
    """

    name: str
    path: str
    snippet: str
    replacement: str
    tests: tuple[str, ...]

    def mutated(self, source: str) -> str:
        """The file with the bug in it.

        Raises:
          ValueError: the snippet does not occur exactly once, or changes nothing.
        """
        count = source.count(self.snippet)
        if count != 1 or self.snippet == self.replacement:
            raise ValueError(f"{self.name}: snippet occurs {count} times in {self.path}, want 1")
        return source.replace(self.snippet, self.replacement)


def mutant_of(
    path: str, name: str, snippet: str, replacement: str, *tests: str, own: str | None = None
) -> Mutant:
    """A mutant whose tests stand in `own`, the test file of its file, unless they name another."""
    own = own or path.replace("deepseek_jax/", "tests/", 1).replace(".py", "_test.py")
    return Mutant(
        name=name,
        path=path,
        snippet=snippet,
        replacement=replacement,
        tests=tuple(test if test.startswith("tests/") else f"{own}::{test}" for test in tests),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the tests ended on a tree: pytest's exit status, first failure, output, seconds."""

    status: int
    failure: str
    output: str
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether a test ran and failed; a tree that cannot be imported is not caught."""
        return self.status == 1 and bool(self.failure)


def run_tests(root: pathlib.Path, tests: tuple[str, ...], *, compiled: pathlib.Path) -> Verdict:
    """Runs tests in a tree until the first failure, in a process that has imported jax.

    Args:
      root: of the tree; written to.
      tests: pytest node ids.
      compiled: folder of compiled programs, found by what they compute: those that a bug does not
        change need no compiling.
    """
    start = time.perf_counter()
    process = _CONTEXT.Process(target=_pytest, args=(root, tests, compiled))
    process.start()
    process.join()
    output = (root / _OUTPUT).read_text()
    failures = [line for line in output.splitlines() if line.startswith("FAILED ")]
    assert process.exitcode is not None
    return Verdict(
        status=process.exitcode,
        failure=failures[0].split()[1].split("::", 1)[1] if failures else "",
        output=output,
        seconds=time.perf_counter() - start,
    )


def _pytest(root: pathlib.Path, tests: tuple[str, ...], compiled: pathlib.Path) -> None:
    """Runs pytest in the tree as if it were the working tree, and ends the process."""
    with (root / _OUTPUT).open("w") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.chdir(root)
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]  # what is imported from now on is the tree's
    sys.path.insert(0, str(root))
    settings = {
        "jax_compilation_cache_dir": str(compiled),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # of the processes that tests start
    # Plain: pytest warns of plugins that it can't rewrite since they are imported.
    arguments = ["-x", "-rf", "--tb=line", "--assert=plain", "-p", "no:cacheprovider", *tests]
    sys.exit(int(pytest.main(arguments)))
