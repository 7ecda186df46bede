"""The run directory: one process at a time, one set of settings, one corpus. Floor 5."""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import jax

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.data import record as corpus_record
from deepseek_jax.data import text_data
from deepseek_jax.data.text_data import TextData
from deepseek_jax.training import checkpoint, hosts

_LOG = logging.getLogger(__name__)

# A run may be continued with other values of these. Another mesh adds up in another order, and
# with a bounded exchange drops other rows; nothing else changes a number of the run.
MAY_CHANGE = (
    "mesh.data",
    "mesh.expert",
    "mesh.model",
    "train.restore_step",
    "train.profile_at",
    "train.profile_steps",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike[str], run_spec: Any) -> Iterator[pathlib.Path]:
    """The directory, made if missing, held by the first process; it has begun no other run.

    Raises:
      ValueError: it holds a run of other settings, whose names are given, or of unknown ones.
      BlockingIOError: another process trains there.
    """
    directory = pathlib.Path(workdir).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        if has_begun(directory):
            check_config(directory / "config.json", run_spec)
        elif steps := checkpoint.finished_steps(directory / "checkpoints"):
            raise ValueError(
                f"{directory} has checkpoints of steps {steps} but no config.json that says of "
                "which settings; restore the file, or give a new --workdir"
            )
        yield directory


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out; the lock is the first process's, for all of them."""
    if not hosts.is_first():
        yield
        return
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"{directory}: another process is training there") from error
        yield


def load_data(
    directory: pathlib.Path, run_spec: RunSpec, *, given: TextData | None = None
) -> TextData:
    """The run's text; of a run that has begun, with the tokenizer and corpus it began with.

    Args:
      directory: of the run.
      run_spec: its settings.
      given: what the settings name, where it has been read before; None reads it.

    Raises:
      ValueError: the corpus or the tokenizer is not the one the run began with; or what
        `text_data.load` finds wrong.
    """
    begun = has_begun(directory)
    tokenizer_path = str(directory / "tokenizer.json") if begun else None
    data = given
    if data is None:
        data = text_data.load(run_spec.data, seed=run_spec.seed, tokenizer_path=tokenizer_path)
    if begun:
        _check_record(directory / "record.json", data)
    return data


def check_processes(run_spec: RunSpec, data: TextData) -> None:
    """Raises unless all processes were started alike; called before anything is restored.

    Raises:
      ValueError: names the processes with other settings, texts or tokenizers than the first.
    """
    hosts.check_same(
        {
            "settings": json.dumps(dataclasses.asdict(run_spec), sort_keys=True),
            "texts": data.record.sha256,
            "tokens": data.tokenizer.sha256,
        }
    )


def begin(
    directory: pathlib.Path,
    run_spec: RunSpec,
    data: TextData,
    *,
    step: int,
    started_from: dict[str, Any] | None,
) -> None:
    """Writes what the run is, `config.json` last; of one that has begun, what it goes on with.

    Called when everything has been built, so that settings that were refused leave no trace.
    The first process writes, when all have looked whether the run has begun (`check_processes`).

    Args:
      directory: of the run.
      run_spec: its settings.
      data: its text.
      step: that it goes on from.
      started_from: `path` and `step` of the parameters that it began with; None for random ones.
    """
    if not hosts.is_first():
        return
    if has_begun(directory):
        record_start(directory / "record.json", run_spec.mesh, step=step)
        return
    data.tokenizer.save(directory / "tokenizer.json")
    corpus_record.write(data.record, directory / "data" / "corpus.json")
    record = {**_record(data, run_spec.mesh), "started_from": started_from}
    write_json(directory / "record.json", record)
    write_config(directory, run_spec)


def write_config(directory: pathlib.Path, run_spec: Any) -> None:
    """Writes the settings of a run, a dataclass of settings."""
    write_json(directory / "config.json", dataclasses.asdict(run_spec))


def has_begun(directory: pathlib.Path) -> bool:
    """Whether a run was started in the directory before."""
    return (directory / "config.json").exists()


def check_config(path: pathlib.Path, run_spec: Any) -> None:
    """Raises unless the settings are those in the file, but for what may change."""
    saved_flat = dict(_flat(read_json(path)))
    now_flat = dict(_flat(dataclasses.asdict(run_spec)))
    names = sorted((saved_flat.keys() | now_flat.keys()) - set(MAY_CHANGE))
    missing = "not set"
    changes = []
    for name in names:
        was = saved_flat[name] if name in saved_flat else missing
        new = now_flat[name] if name in now_flat else missing
        if was != new:
            changes.append(f"{name}: {was!r} there, {new!r} now")
    if changes:
        raise ValueError(
            f"{path} holds a run of other settings ({'; '.join(changes)}); go on with those, or "
            f"give a new --workdir. Only {', '.join(MAY_CHANGE)} may change."
        )


def recorded_origin(directory: pathlib.Path) -> dict[str, Any] | None:
    """What the run in a directory began with, as given to `begin`; None if it has not begun."""
    return read_json(directory / "record.json")["started_from"] if has_begun(directory) else None


def _record(data: TextData, mesh: MeshSpec) -> dict[str, Any]:
    """What a run began with, so that two runs can be told apart."""
    return {
        **setup_of(mesh),
        "corpus_sha256": data.record.sha256,
        "tokenizer_sha256": data.tokenizer.sha256,
        "num_train_rows": len(data.train.tokens),
        "num_heldout_rows": len(data.heldout.tokens),
        "gone_on": [],
    }


def setup_of(mesh: MeshSpec) -> dict[str, Any]:
    """The command, versions and devices of this process."""
    devices = jax.devices()
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "made_with": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "device_kind": devices[0].device_kind,
            "num_devices": mesh.num_devices,
            "mesh": str(mesh),
            "num_processes": jax.process_count(),
        },
    }


def starts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each start that trained, oldest first: its `command` and what it was `made_with`.

    Args:
      record: content of `record.json`. Written by an older version, it knows the first alone.
    """
    gone_on = record["gone_on"] if "gone_on" in record else []
    return [{"step": 0, **{name: record[name] for name in ("command", "made_with")}}, *gone_on]


def record_start(path: pathlib.Path, mesh: MeshSpec, *, step: int) -> None:
    """Adds a start to the record; warns of other versions or devices, which may change bits."""
    record = read_json(path)
    before, now = starts(record), {"step": step, **setup_of(mesh)}
    was, new = before[-1]["made_with"], now["made_with"]
    changed = [f"{name} {was[name]} -> {new[name]}" for name in new if was[name] != new[name]]
    if changed:
        _LOG.warning(
            "%s: going on with another setup (%s): the run will not equal an uninterrupted one "
            "bit for bit",
            path,
            ", ".join(changed),
        )
    write_json(path, {**record, "gone_on": [*before[1:], now]})


def _check_record(path: pathlib.Path, data: TextData) -> None:
    """Raises unless the text and its tokenizer are those that the run began with."""
    saved = read_json(path)
    corpus_record.check_same_corpus(
        data.record, recorded_sha256=saved["corpus_sha256"], where=str(path)
    )
    if saved["tokenizer_sha256"] != data.tokenizer.sha256:
        raise ValueError(
            f"{path.parent / 'tokenizer.json'}: sha256 {data.tokenizer.sha256}, the run began "
            f"with {saved['tokenizer_sha256']}"
        )


def _flat(node: dict[str, Any], *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings by dotted name."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, prefix=f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
      ValueError: not JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Replaces the file, at once or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
