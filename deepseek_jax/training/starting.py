"""A run that begins with the parameters of another one. Floor 5."""

import pathlib

from deepseek_jax.data import tokenizers
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.training import checkpoint, hosts, workdir
from deepseek_jax.training.checkpoint import Model
from deepseek_jax.training.state import TrainState


def read(
    start_from: str, abstract: TrainState, tokenizer: Tokenizer, *, directory: pathlib.Path
) -> Model:
    """Parameters and choice biases of another run, placed as `abstract` says.

    A run that has begun before and saved nothing takes the step that it has recorded, and not a
    newer one.

    Args:
      start_from: the other run's directory.
      abstract: of `state.abstract`, of the run that begins.
      tokenizer: of the run that begins.
      directory: of the run that begins.

    Raises:
      FileNotFoundError: no such run, no finished checkpoint, or the recorded one is gone.
      ValueError: another tokenizer, or other arrays than those of `abstract`.
      CheckpointDamagedError: the files are not what was saved.
    """
    path, where = pathlib.Path(start_from), f"train.start_from={start_from!r}"
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{where}: no run directory, it has no config.json")
    theirs = tokenizers.load(path / "tokenizer.json").sha256
    if theirs != tokenizer.sha256:
        raise ValueError(
            f"{where}: its tokenizer has the sha256 {theirs}, that of the settings "
            f"{tokenizer.sha256}; to use the same, give --config.data.tokenizer=file "
            f"--config.data.tokenizer_path={path / 'tokenizer.json'}"
        )
    recorded = workdir.recorded_origin(directory)
    finished = checkpoint.finished_steps(path / "checkpoints")
    newest = max(finished, default=None)
    step = hosts.number_of_first(newest if recorded is None else recorded["step"])
    if recorded is not None and step not in finished:
        raise FileNotFoundError(
            f"{where}: the run began with its step {step}, which is gone (it has {finished}); "
            "give a new --workdir"
        )
    try:
        return checkpoint.restore_model(path / "checkpoints", abstract, step=step)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
