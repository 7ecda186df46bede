"""A likely bug: where it goes, what it replaces, and which tests must notice."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import time


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
    """Runs tests in a tree until the first failure.

    Args:
      root: of the tree.
      tests: pytest node ids.
      compiled: folder of compiled programs, found by what they compute: those that a bug does not
        change need no compiling.
    """
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-rf", "--tb=line"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *tests],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return Verdict(
        status=done.returncode,
        failure=failures[0].split()[1].split("::", 1)[1] if failures else "",
        output=done.stdout + done.stderr,
        seconds=time.perf_counter() - start,
    )
