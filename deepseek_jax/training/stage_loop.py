"""The loop of a stage: step, log, measure, save, stop; resumed wherever it was left. Floor 5."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import console as rich_console

from deepseek_jax.core.stage_spec import StageTrainSpec
from deepseek_jax.training import checkpoint, finite, interrupt, metrics, progress
from deepseek_jax.training.loop import Outcome


class Stage(NamedTuple):
    """What a stage does; the loop knows nothing else of it.

    Attributes:
      abstract: shapes, dtypes and placement of its state, a named tuple with a `step`.
      initial: makes the state before the first step.
      advance: (state, step) -> (state, metrics as scalars); consumes the state.
      measure: state -> numbers; what `eval_every` asks for.
    """

    abstract: Any
    initial: Callable[[], Any]
    advance: Callable[[Any, int], tuple[Any, dict[str, Any]]]
    measure: Callable[[Any], dict[str, float]]


def run(
    stage: Stage,
    spec: StageTrainSpec,
    directory: pathlib.Path,
    *,
    begin: Callable[[int], None],
    console: rich_console.Console,
) -> Outcome:
    """Goes from the newest checkpoint in the directory, or from the start, to the last step.

    On the CPU a run that is killed and resumed ends with the same bits and the same lines of
    metrics (but for the time) as one that never stopped.

    Args:
      stage: what is done.
      spec: how long, and what happens when.
      directory: claimed by the caller.
      begin: told the step that the run goes on from, before anything is computed; not called
        for a finished run.
      console: for the progress.

    Raises:
      NonFiniteError: a number that a step reports is not finite; the update was not applied.
      CheckpointDamagedError: the newest checkpoint is damaged.
    """
    keeper = checkpoint.Checkpoints(directory / "checkpoints", keep=spec.keep_checkpoints)
    try:
        restored = keeper.restore(stage.abstract, step=spec.restore_step)
        first = 0 if restored is None else int(restored.state.step)
        if first == spec.num_steps:
            console.print(f"{directory}: already finished: {first} steps", soft_wrap=True)
            return Outcome(first, 0, None)
        begin(first)
        seconds = 0.0 if restored is None else restored.progress["seconds"]
        clock = progress.Throughput(seconds=seconds)
        state: Any = stage.initial() if restored is None else restored.state
        lines = metrics.RunLines(directory, last_step=first)
        shown = progress.Progress(first_step=first, num_steps=spec.num_steps, console=console)
        step = first
        try:
            with shown, interrupt.Interrupt() as asked:
                if first:
                    shown.say(f"{directory}: going on from step {first}")
                stopped_by = asked.requested
                while step < spec.num_steps and stopped_by is None:
                    state, told = stage.advance(state, step)
                    step += 1
                    record = {name: float(value) for name, value in jax.device_get(told).items()}
                    _check(record, step=step)
                    if step % spec.eval_every == 0 or step == spec.num_steps:
                        measured = stage.measure(state)
                        finite.check_heldout(measured, step=step)
                        record |= measured
                    record |= {"step": step, "seconds": clock.seconds()}
                    lines.write(record)
                    shown.step(step)
                    shown.log(record)
                    stopped_by = asked.requested
                    is_last = step == spec.num_steps or stopped_by is not None
                    if is_last or step % spec.checkpoint_every == 0:
                        lines.sync()
                        keeper.save(state, {"seconds": clock.seconds()})
                keeper.wait()
                if stopped_by is not None:
                    saved = f", saved in {directory}" if step > first else ", before a step"
                    shown.say(f"stopped at step {step}{saved}")
        finally:
            lines.close()
        return Outcome(step, step - first, stopped_by)
    finally:
        keeper.close()


def _check(record: dict[str, float], *, step: int) -> None:
    """Raises unless all that a step reports is finite."""
    bad = {name: value for name, value in record.items() if not np.isfinite(value)}
    if bad:
        raise finite.NonFiniteError(
            f"step {step}: {', '.join(f'{name} is {value}' for name, value in bad.items())}. The "
            "update was not applied; the last checkpoint is left as it was."
        )
