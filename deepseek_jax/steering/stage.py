"""A whole run of the stage, from settings to a finished directory. Floor 6."""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from rich import console as rich_console

from deepseek_jax.core.steering_spec import SteeringRunSpec
from deepseek_jax.data import tokenizers
from deepseek_jax.nn.steered import SteeredDecoder
from deepseek_jax.steering import batches
from deepseek_jax.steering import step as step_lib
from deepseek_jax.steering.batches import Measured, TaskData
from deepseek_jax.training import optimizer as optimizer_lib
from deepseek_jax.training import stage_inputs, stage_loop, workdir
from deepseek_jax.training import state as train_state
from deepseek_jax.training.loop import Outcome


def train(
    spec: SteeringRunSpec, run_directory: str | pathlib.Path, *, console: rich_console.Console
) -> Outcome:
    """Trains from random parameters; goes on where it was left.

    Args:
      spec: all settings.
      run_directory: where everything is written.
      console: for the progress.

    Raises:
      ValueError: the settings, or what stands in the directory, do not fit.
      NonFiniteError: a loss or a gradient is not finite.
    """
    with workdir.claimed(run_directory, spec) as directory:
        tokenizer = tokenizers.bytes_tokenizer()
        tokenizers.check_vocabulary(tokenizer, model_vocab_size=spec.model.vocab_size)
        data = batches.make_data(spec, tokenizer)
        facts = {"tasks": _fingerprint(data)}
        stage = build(spec, data)

        def begin(step: int) -> None:
            stage_inputs.begin(directory, spec, tokenizer, facts, step=step)

        return stage_loop.run(stage, spec.train, directory, begin=begin, console=console)


def _fingerprint(data: TaskData) -> str:
    """Tells tables and templates of another version apart."""
    digest = hashlib.sha256()
    for array in (*data.train, *data.heldout, *data.train_descriptions):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def build(spec: SteeringRunSpec, data: TaskData) -> stage_loop.Stage:
    """What the stage does, on the mesh of the settings.

    Args:
      spec: of the run.
      data: of `batches.make_data`.
    """
    layout, on_mesh = stage_inputs.make_layout(spec.mesh)
    model = SteeredDecoder(spec.model, task_spec=spec.vector)
    length = spec.tasks.sequence_length(spec.model.block_size)
    placement = train_state.parameter_placement(model, sequence_length=length, mesh=layout.mesh)
    optimizer = optimizer_lib.make_optimizer(
        spec.optimizer, num_steps=spec.train.num_steps, placement=placement
    )
    abstract = train_state.abstract(model, optimizer, sequence_length=length, mesh=layout.mesh)
    shardings = train_state.shardings(abstract)

    def initial() -> train_state.TrainState:
        return train_state.initial_state(
            model, optimizer, jax.random.key(spec.seed), sequence_length=length
        )

    placed = SteeredDecoder(spec.model, on_mesh, spec.vector)
    on_batch = step_lib.make_step(placed, optimizer, shardings=shardings)
    is_right = step_lib.make_right(placed)

    described = {
        "heldout_accuracy": batches.heldout(spec, data, data.train_descriptions),
        "paraphrase_accuracy": batches.heldout(spec, data, data.heldout_descriptions),
    }

    def share_right(variables: Any, listed: list[Measured]) -> float:
        right = [np.asarray(is_right(variables, one.batch))[one.is_counted] for one in listed]
        return float(np.mean(np.concatenate(right)))

    def measure(now: train_state.TrainState) -> dict[str, float]:
        variables = {"params": now.params, "balance": now.balance}
        return {name: share_right(variables, listed) for name, listed in described.items()}

    return stage_loop.Stage(
        abstract,
        jax.jit(initial, out_shardings=shardings),
        lambda now, step: on_batch(now, batches.draw(spec, data, step=step)),
        measure,
    )
