"""Answers prompts from a checkpoint, streaming.

Run: python -m experiments.generate --workdir=runs/demo --prompt='def main():'
     echo 'import os' | python -m experiments.generate --workdir=runs/demo

Without --prompt, each line of standard input is a prompt.
"""

import pathlib
import sys
from collections.abc import Iterator

import jax
from absl import flags

from experiments import settings, trained

_PROMPT = flags.DEFINE_multi_string("prompt", None, "A text to continue; may be repeated.")
_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Tokens drawn at most.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy.", lower_bound=0.0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Nucleus that is drawn from, above 0.", 1e-9, 1.0)
_SEED = flags.DEFINE_integer("seed", 0, "Same seed, same answers.", lower_bound=0)


def main(run: trained.Trained) -> None:
    """Continues every prompt, printing each piece as it is drawn."""
    key = jax.random.key(_SEED.value)
    for prompt in _prompts():
        key, prompt_key = jax.random.split(key)
        print(prompt, end="", flush=True)
        for piece in trained.continuation(
            run,
            prompt,
            prompt_key,
            max_new_tokens=_TOKENS.value,
            temperature=_TEMPERATURE.value,
            top_p=_TOP_P.value,
        ):
            print(piece, end="", flush=True)
        print(flush=True)


def _prompts() -> Iterator[str]:
    """The prompts of the flags, or the lines of standard input."""
    if _PROMPT.value is not None:
        yield from _PROMPT.value
        return
    if sys.stdin.isatty():
        print("a line is a prompt; end with Ctrl-D", file=sys.stderr)
    for line in sys.stdin:
        yield line.rstrip("\n")


if __name__ == "__main__":
    workdir, step = settings.workdir_flag(), settings.step_flag()

    def open_workdir() -> trained.Trained:
        """The run that --workdir names."""
        directory: pathlib.Path = workdir()
        return trained.open_run(directory, step=step())

    settings.run_app(main, open_workdir)
