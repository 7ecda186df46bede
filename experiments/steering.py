"""Measures a run of described tasks: accuracy by description, compositions, experts by task.

Run: python -m experiments.steering --workdir=runs/steering

Writes `steering.md`, `steering.json` and `task_experts.png` into the run's directory. With
--descriptions=FILE (JSONL of "task" and "description", or plain text, one description a line) it
measures those too.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from rich import console as rich_console

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.steering_spec import SteeringRunSpec
from deepseek_jax.data import tokenizers
from deepseek_jax.data.steering import description_file, encoded, tasks
from deepseek_jax.data.steering.description_file import UserDescription
from deepseek_jax.evaluation import page, task_plots
from deepseek_jax.nn.steered import SteeredDecoder
from deepseek_jax.parallel import layout
from deepseek_jax.steering import batches, measure, report
from deepseek_jax.steering.answers import Answerer
from deepseek_jax.training import stage_inputs
from experiments import settings

NUM_INPUTS = 200


class Asked(NamedTuple):
    """A run to be measured, and what its user describes."""

    spec: SteeringRunSpec
    user: list[UserDescription]


def main(workdir: pathlib.Path, asked: Asked, step: int | None) -> None:
    """Measures a checkpoint and writes the report."""
    spec = asked.spec
    length = spec.tasks.sequence_length(spec.model.block_size)
    model = SteeredDecoder(spec.model, task_spec=spec.vector)
    one_device = layout.make(mesh_spec.ONE_DEVICE, jax.devices())
    opened = stage_inputs.open_model(
        str(workdir), model, sequence_length=length, layout=one_device, step=step
    )
    variables = {"params": opened.model.params, "balance": opened.model.balance}
    answerer = Answerer(model, variables, opened.tokenizer, spec.tasks.answer_width)
    data = batches.make_data(spec, opened.tokenizer)
    num_inputs = min(NUM_INPUTS, spec.tasks.num_heldout)
    examiner = measure.Examiner(
        answerer, data, num_inputs=num_inputs, width=spec.vector.description_length
    )
    findings = examiner.findings(length=length, user=asked.user)
    if findings.usage:
        usage = findings.usage["prompt"]
        load = np.stack(
            [
                usage.counts[:, usage.kind_ids == task].sum(axis=1)
                for task in range(len(data.tasks))
            ],
            axis=1,
        )
        names = [task.name for task in data.tasks]
        task_plots.usage_by_task(workdir / report.PICTURE, load, names=names)
    told = {"step": opened.model.step, "num_inputs": num_inputs}
    text = report.markdown(findings, **told)
    page.write(workdir, markdown=text, content=report.content(findings, **told), name="steering")
    rich_console.Console().print(text, markup=False, highlight=False, soft_wrap=True)


def asked_flags(workdir: Callable[[], pathlib.Path]) -> Callable[[], Asked]:
    """Defines `--descriptions`; returns what reads the run's settings and that file."""
    holder = flags.DEFINE_string("descriptions", None, "File of descriptions, one a line.")

    def read() -> Asked:
        spec = settings.load_run_spec(workdir())
        if not isinstance(spec, SteeringRunSpec):
            raise ValueError(f"{workdir()}: no run of stage='steering'")
        if holder.value is None:
            return Asked(spec, [])
        listed = tasks.training_tasks(
            spec.tasks.names, with_compositions=spec.tasks.trains_compositions
        )
        names = [task.name for task in listed]
        user = description_file.read(holder.value, task_names=names)
        encoded.descriptions(
            [line.text for line in user],
            tokenizers.load(workdir() / "tokenizer.json"),
            length=spec.vector.description_length,
            where=[line.where for line in user],
        )
        return Asked(spec, user)

    return read


if __name__ == "__main__":
    directory = settings.workdir_flag()
    settings.run_app(main, directory, asked_flags(directory), settings.step_flag())
