"""The one way to start a run: read the settings, check them, train.

Run: python -m experiments.main --config=experiments/configs/laptop.py --workdir=runs/laptop \
       --config.model.num_experts=64

The same command on a directory with a checkpoint goes on from there. Exit codes: 0 when the
run is finished, or was stopped by SIGTERM and saved; 130 when it was stopped by Ctrl-C and
saved; 2 for bad settings; 1 for anything else.
"""

import pathlib
import sys

from rich import console as rich_console

from deepseek_jax.core import accounting
from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.training import interrupt, loop
from experiments import settings


def main(run_spec: RunSpec, workdir: pathlib.Path) -> None:
    """Trains the run in `workdir` to its last step."""
    outcome = loop.train(
        run_spec,
        workdir,
        flops_per_token=accounting.training_flops(
            run_spec.model, length=run_spec.data.sequence_length
        ),
        console=rich_console.Console(),
    )
    if outcome.stopped_by is not None:
        sys.exit(interrupt.exit_code(outcome.stopped_by))


if __name__ == "__main__":
    settings.run_app(main, settings.config_flag(), settings.workdir_flag())
