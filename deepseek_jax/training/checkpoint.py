"""Checkpoints: saved in the background by orbax, sealed by a manifest, checked when read. Floor 5.

`directory/step_00000040/` holds the items `model` (parameters and choice biases), `optimizer`
(step, moments, key) and `progress` (JSON), and `manifest.json`, which is written last. What
has no manifest was never finished and is never read; what has one and doesn't match it is an
error, never a reason to take an older step by itself. `sealed.json` lists the steps that were
finished, so that one that lost its manifest, or vanished, is damaged and not unfinished.
"""

import concurrent.futures
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from deepseek_jax.training import hosts, manifest
from deepseek_jax.training.parameter_groups import parameter_name
from deepseek_jax.training.state import TrainState

_LOG = logging.getLogger(__name__)
_STEP_NAME = re.compile(r"step_(\d{8,})")
_MODEL_FIELDS = ("params", "balance")
_UNFINISHED_SUFFIX = ".orbax-checkpoint-tmp"
_REMOVED_PREFIX = "removed_"
_SEALED_NAME = "sealed.json"


class Restored(NamedTuple):
    """A state, and the JSON that was saved with it."""

    state: TrainState
    progress: dict[str, Any]


class Model(NamedTuple):
    """What a forward pass needs, and the step it was saved at."""

    params: PyTree
    balance: PyTree
    step: int


def finished_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Steps whose save was finished, oldest first; whether they are whole is not checked."""
    names = {path.name for path in pathlib.Path(directory).glob("step_*")}
    matches = [match for name in names if (match := _STEP_NAME.fullmatch(name))]
    steps = [int(match[1]) for match in matches]
    found = {step for step in steps if manifest.is_finished(_path(directory, step))}
    return sorted(found | set(_sealed_steps(directory)))


def restore_model(
    directory: str | os.PathLike[str], abstract: TrainState, *, step: int | None
) -> Model:
    """Parameters and choice biases of a checkpoint; nothing in the directory is changed.

    Args:
      directory: `WORKDIR/checkpoints`.
      abstract: of `state.abstract`; only `params` and `balance` are read.
      step: which one; None is the newest that was finished.

    Raises:
      FileNotFoundError: no finished checkpoint, or not this one.
      CheckpointDamagedError: the files are not what was saved.
      ValueError: the arrays are not those of `abstract`.
    """
    taken = _chosen_step(directory, step)
    if taken is None:
        raise FileNotFoundError(f"{directory}: no finished checkpoint")
    wanted = _items(abstract)["model"]
    _check_arrays(wanted, _verified(directory, taken), step=taken)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        read = reader.restore(
            _path(directory, taken),
            args=ocp.args.Composite(model=ocp.args.StandardRestore(wanted)),
        )
    state = _filled(abstract, read["model"])
    return Model(state.params, state.balance, taken)


class Checkpoints:
    """The checkpoints of one run. Every process of the run calls every method at the same step.

    All processes write and read their part of the arrays; the first one does the rest: it says
    which checkpoint is taken, checks and seals it, and clears away what is old.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int) -> None:
        """Makes the directory.

        Args:
          directory: `WORKDIR/checkpoints`.
          keep: newest finished checkpoints to keep, at least 1.
        """
        self._directory = pathlib.Path(directory).absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._sealer = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._sealing: concurrent.futures.Future[None] | None = None

    def restore(self, abstract: TrainState, *, step: int | None) -> Restored | None:
        """The newest finished checkpoint, or the one asked for; None if there is none at all.

        Unfinished saves are passed over with a warning that names them and put out of the
        way, as are checkpoints newer than a `step` that was asked for.

        Args:
          abstract: of `state.abstract`: the shapes, dtypes and placement wanted.
          step: the step to go back to; None takes the newest.

        Raises:
          FileNotFoundError: no finished checkpoint of this `step`.
          CheckpointDamagedError: the files are not what was saved; names the file, the step and
            the older steps that are whole.
          ValueError: the arrays are not those of `abstract`; names the first.
        """
        items = _items(abstract)
        taken = None
        if hosts.is_first():
            self._put_away_unfinished()
            taken = _chosen_step(self._directory, step)
            if taken is not None:
                saved = _verified(self._directory, taken)
                _check_arrays(items["model"] | items["optimizer"], saved, step=taken)
        taken = hosts.number_of_first(taken)
        if taken is None:
            return None
        read = self._checkpointer.restore(
            _path(self._directory, taken),
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(items["model"]),
                optimizer=ocp.args.StandardRestore(items["optimizer"]),
                progress=ocp.args.JsonRestore(),
            ),
        )
        if hosts.is_first():
            self._set_aside_newer(taken)
        return Restored(_filled(abstract, read["model"] | read["optimizer"]), read["progress"])

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts to save; the arrays are copied before it returns, the rest is background work.

        Waits for an earlier save first. The state may be donated and `progress` changed
        afterwards.

        Raises:
          Exception: what went wrong with the earlier save, or with this one's start.
        """
        self.wait()
        path = _path(self._directory, int(state.step))
        items = _items(state)
        self._checkpointer.save(
            path,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(items["model"]),
                optimizer=ocp.args.StandardSave(items["optimizer"]),
                progress=ocp.args.JsonSave(progress),
            ),
        )
        arrays = {
            name: manifest.ArrayInfo(leaf.shape, str(leaf.dtype))
            for name, leaf in (items["model"] | items["optimizer"]).items()
        }
        self._sealing = self._sealer.submit(self._seal, path, arrays)

    def wait(self) -> None:
        """Returns when the save in progress is sealed; raises what went wrong with it."""
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            sealing.result()

    def close(self) -> None:
        """Waits for the save in progress and ends the background threads."""
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._checkpointer.close()

    def _seal(self, path: pathlib.Path, arrays: dict[str, manifest.ArrayInfo]) -> None:
        """Background: when orbax is done, writes the manifest; only then may old steps go."""
        self._checkpointer.wait_until_finished()
        if not hosts.is_first():
            return
        manifest.write(path, arrays)
        steps = finished_steps(self._directory)
        # Old steps leave the list before they go, so that a kill in between damages nothing.
        _write_sealed(self._directory, steps[-self._keep :])
        for old in steps[: -self._keep]:
            # Renamed first: a kill on the way leaves no half-deleted checkpoint.
            removed = self._directory / f"{_REMOVED_PREFIX}{old}"
            _path(self._directory, old).rename(removed)
            shutil.rmtree(removed)

    def _put_away_unfinished(self) -> None:
        """Clears what a killed process left behind."""
        for removed in self._directory.glob(f"{_REMOVED_PREFIX}*"):
            shutil.rmtree(removed)
        for path in sorted(self._directory.glob("step_*")):
            if path.name.endswith(_UNFINISHED_SUFFIX):
                _LOG.warning("%s: unfinished save, passed over and removed", path)
                shutil.rmtree(path)
            elif (
                (match := _STEP_NAME.fullmatch(path.name))
                and not manifest.is_finished(path)
                and int(match[1]) not in _sealed_steps(self._directory)
            ):
                self._set_aside(path, why="unfinished save (it has no manifest), passed over")

    def _set_aside_newer(self, taken: int) -> None:
        """Makes the checkpoint that was taken the newest."""
        steps = finished_steps(self._directory)
        _write_sealed(self._directory, [step for step in steps if step <= taken])
        for newer in steps:
            if newer > taken and _path(self._directory, newer).exists():
                self._set_aside(_path(self._directory, newer), why=f"newer than step {taken}")

    def _set_aside(self, path: pathlib.Path, *, why: str) -> None:
        """Renames a checkpoint so that it is no step any more; nothing is deleted."""
        number = 0
        while (target := self._directory / f"aside_{number}_{path.name}").exists():
            number += 1
        path.rename(target)
        _LOG.warning("%s: %s; renamed to %s", path, why, target.name)


def _path(directory: str | os.PathLike[str], step: int) -> pathlib.Path:
    return pathlib.Path(directory).absolute() / f"step_{step:08d}"


def _sealed_steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps that were finished, by the list beside them; none before the first save."""
    path = pathlib.Path(directory) / _SEALED_NAME
    if not path.exists():
        return []
    try:
        return [int(step) for step in json.loads(path.read_bytes())]
    except (ValueError, TypeError) as error:
        raise manifest.CheckpointDamagedError(
            f"{path}: not a list of finished steps: {error}"
        ) from error


def _write_sealed(directory: pathlib.Path, steps: list[int]) -> None:
    """Replaces the list of finished steps, at once or not at all."""
    unfinished = directory / f"{_SEALED_NAME}.tmp"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(steps, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(directory / _SEALED_NAME)


def _chosen_step(directory: str | os.PathLike[str], step: int | None) -> int | None:
    """The finished step asked for, or the newest."""
    steps = finished_steps(directory)
    if step is not None and step not in steps:
        raise FileNotFoundError(
            f"train.restore_step={step}: {directory} has finished checkpoints of steps {steps}"
        )
    return max(steps, default=None) if step is None else step


def _verified(directory: str | os.PathLike[str], step: int) -> dict[str, manifest.ArrayInfo]:
    """The arrays of a checkpoint that is whole."""
    try:
        return manifest.verify(_path(directory, step))
    except manifest.CheckpointDamagedError as error:
        older = [s for s in finished_steps(directory) if s < step and _is_whole(directory, s)]
        way_out = (
            f"the older steps {older} are whole: to go on from one of them, give "
            f"--config.train.restore_step={older[-1]} (to look at it only: --step={older[-1]})"
            if older
            else "there is no older step that is whole"
        )
        message = f"the checkpoint of step {step} is damaged: {error}; {way_out}"
        raise manifest.CheckpointDamagedError(message) from error


def _is_whole(directory: str | os.PathLike[str], step: int) -> bool:
    try:
        manifest.verify(_path(directory, step))
    except manifest.CheckpointDamagedError:
        return False
    return True


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    """The leaves of a state by dotted name, in the two items they are saved in.

    Flat names survive every change of container (named tuples, empty nodes of optax), and the
    manifest's list of arrays reads like the tree.
    """
    items: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = parameter_name(path)
        is_model = name.partition(".")[0] in _MODEL_FIELDS
        items["model" if is_model else "optimizer"][name] = leaf
    return items


def _filled(abstract: TrainState, leaves: dict[str, Any]) -> TrainState:
    """The state with the leaves of these names; names that were not read stay abstract."""

    def leaf_of(path: tuple, leaf: Any) -> Any:
        name = parameter_name(path)
        return leaves[name] if name in leaves else leaf

    return jax.tree_util.tree_map_with_path(leaf_of, abstract)


def _check_arrays(
    wanted: dict[str, Any], saved: dict[str, manifest.ArrayInfo], *, step: int
) -> None:
    """Raises a ValueError that names the first array whose shape or dtype isn't the saved one.

    Orbax itself would cast a dtype without a word.
    """
    for name, leaf in wanted.items():
        want = manifest.ArrayInfo(leaf.shape, str(leaf.dtype))
        if name not in saved:
            raise ValueError(f"the checkpoint of step {step} has no array {name}, wanted {want}")
        if saved[name] != want:
            raise ValueError(
                f"the checkpoint of step {step} holds {name} as {saved[name]}, wanted is {want}: "
                "the settings of the model or optimizer are not those it was saved with"
            )
