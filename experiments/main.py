"""The one way to start a run: read the settings, check them, train.

Run: python -m experiments.main --config=experiments/configs/laptop.py --workdir=runs/laptop \
       --config.model.num_experts=64

The same command on a directory with a checkpoint goes on from there. With --distributed, the
same command on every host is one run (docs/cloud.md). Exit codes: 0 when the run is finished, or
was stopped by SIGTERM and saved; 130 when it was stopped by Ctrl-C and saved; 2 for bad settings;
1 for anything else.
"""

import pathlib
import sys
from collections.abc import Callable

import jax
from rich import console as rich_console

from deepseek_jax.contrastive import stage as contrastive_stage
from deepseek_jax.core import accounting
from deepseek_jax.core.contrastive_spec import ContrastiveRunSpec
from deepseek_jax.core.preference_spec import PreferenceRunSpec
from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.core.stage_spec import ProblemsRunSpec, RewardRunSpec
from deepseek_jax.core.steering_spec import SteeringRunSpec
from deepseek_jax.data import preferences
from deepseek_jax.reinforcement import (
    policy_stage,
    preference_stage,
    problem_files,
    reward_stage,
)
from deepseek_jax.steering import stage as steering_stage
from deepseek_jax.training import hosts, interrupt, loop
from experiments import processes, settings


def main(run_spec: settings.StageSpec, workdir: pathlib.Path) -> None:
    """Takes the run in `workdir` to its last step."""
    outcome = _run(run_spec, workdir, rich_console.Console(quiet=not hosts.is_first()))
    if outcome is not None and outcome.stopped_by is not None:
        sys.exit(interrupt.exit_code(outcome.stopped_by))


def _run(
    run_spec: settings.StageSpec, workdir: pathlib.Path, console: rich_console.Console
) -> loop.Outcome | None:
    """What the kind of the settings asks for."""
    match run_spec:
        case RunSpec():
            flops = accounting.training_flops(run_spec.model, length=run_spec.data.sequence_length)
            return loop.train(run_spec, workdir, flops_per_token=flops, console=console)
        case ContrastiveRunSpec():
            return contrastive_stage.train(run_spec, workdir, console=console)
        case ProblemsRunSpec():
            facts = problem_files.write(run_spec, workdir)
            console.print(
                f"{workdir}: {facts['num_documents']:,} documents, "
                f"{facts['right_share']:.1%} of them right; problems {facts['num_problems']}",
                soft_wrap=True,
            )
            return None
        case RewardRunSpec():
            return reward_stage.train(run_spec, workdir, console=console)
        case PreferenceRunSpec():
            return preference_stage.train(run_spec, workdir, console=console)
        case SteeringRunSpec():
            return steering_stage.train(run_spec, workdir, console=console)
        case _:
            return policy_stage.train(run_spec, workdir, console=console)


def start(run_spec: settings.StageSpec, workdir: pathlib.Path) -> None:
    """`main` in one process or in several, of which none outlives the others."""
    try:
        main(run_spec, workdir)
    except SystemExit:
        processes.leave()
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        processes.end_all(error)
    processes.leave()


def run_spec_flags() -> Callable[[], settings.StageSpec]:
    """Defines the flags of a run; returns what reads its settings, which fit all its devices."""
    join, config = processes.join_flags(), settings.config_flag()

    def read() -> RunSpec:
        run_spec = config()
        join()
        if not isinstance(run_spec, RunSpec):
            if jax.process_count() > 1:
                processes.refuse_all(
                    ValueError(f"stage={run_spec.stage!r} runs in one process, on all its devices")
                )
            if isinstance(run_spec, PreferenceRunSpec):
                preferences.locate(run_spec.files.pairs)
            return run_spec
        try:
            hosts.layout_for(run_spec)
        except ValueError as error:
            if jax.process_count() > 1:
                processes.refuse_all(error)
            raise
        return run_spec

    return read


if __name__ == "__main__":
    settings.run_app(start, run_spec_flags(), settings.workdir_flag())
