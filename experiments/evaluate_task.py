"""Accuracy of a run on freshly drawn held-out problems, for `experiments.evaluate`."""

import pathlib

import numpy as np
from rich import console as rich_console

from deepseek_jax.core import config
from deepseek_jax.core.stage_spec import RolloutSpec, TaskEvalSpec
from deepseek_jax.data.problems import gsm8k, splits, tasks
from deepseek_jax.data.problems.problem import Problem
from experiments import measure

_SEED = 0
_ANSWERS_AT_ONCE = 128
_GSM8K = "gsm8k"


def problems(spec: TaskEvalSpec) -> list[Problem]:
    """Problems that no stage trains on: of the split "test", or GSM8K's test file.

    Raises:
      ValueError: a size that the task does not have, or too many problems.
      FileNotFoundError: GSM8K is not there.
    """
    assert spec.task is not None
    if spec.task == _GSM8K:
        return [record.problem for record in gsm8k.read(split="test")][: spec.num_problems]
    return splits.draw_split(
        tasks.task(spec.task).draw,
        np.random.default_rng(_SEED),
        sizes=[spec.size],
        split="test",
        num_problems=spec.num_problems,
    )


def open_run(
    workdir: pathlib.Path, listed: list[Problem], spec: TaskEvalSpec, *, step: int | None
) -> tuple[measure.Model, RolloutSpec]:
    """The model of a run, and how it answers problems of these lengths.

    Raises:
      FileNotFoundError: no run there, or none that has saved anything.
      ValueError: prompts and answers do not fit its context, or the run does not open.
    """
    model = measure.open_run(workdir, step=step)
    tokenizer = model.opened.tokenizer
    rollout = RolloutSpec(
        num_prompts=min(_ANSWERS_AT_ONCE, len(listed)),
        samples_per_prompt=1,
        prompt_width=1 + max(len(tokenizer.encode(problem.prompt)) for problem in listed),
        answer_width=max(len(tokenizer.encode(problem.answer)) for problem in listed),
        max_new_tokens=spec.max_new_tokens,
        temperature=1.0,
    )
    length = rollout.sequence_length(model.spec.block_size)
    config.require(
        length <= model.spec.context_length,
        "eval.max_new_tokens",
        spec.max_new_tokens,
        f"such that the {length} tokens of prompt and answer fit the model's context of "
        f"{model.spec.context_length}",
    )
    return model, rollout


def main(
    model: measure.Model, listed: list[Problem], rollout: RolloutSpec, *, temperature: float
) -> None:
    """Answers the problems and prints the accuracy with its interval, by number of steps too."""
    found = measure.measure(model, listed, rollout, temperature=temperature).accuracy
    console = rich_console.Console()
    rows = [("all", found.all), *((f"{n} steps", part) for n, part in found.by_steps.items())]
    for name, part in rows:
        console.print(
            f"{name}: {part.value:.1%} [{part.low:.1%}, {part.high:.1%}] of {part.num:,} problems",
            markup=False,
        )
    console.print(
        f"format {found.format_rate:.1%}, {found.mean_length:.1f} tokens a response; "
        f"{listed[0].task}, temperature {temperature:g}, checkpoint of step "
        f"{model.opened.model.step}; in brackets 95% intervals (Wilson)",
        markup=False,
    )
