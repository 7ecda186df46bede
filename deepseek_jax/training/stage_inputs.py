"""What a stage reads of the stages before it, checked before anything compiles. Floor 5."""

import hashlib
import pathlib
from typing import Any, NamedTuple

import jax

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.data import tokenizers
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.training import checkpoint, optimizer, state, workdir
from deepseek_jax.training.state import TrainState


class Opened(NamedTuple):
    """A model of an earlier run, its tokenizer, and what tells it from others."""

    model: checkpoint.Model
    tokenizer: Tokenizer
    fingerprint: dict[str, Any]


def make_layout(spec: MeshSpec) -> tuple[Layout, Layout | None]:
    """The mesh, and what models are told of it: None on one device."""
    layout = layout_lib.make(spec, jax.devices())
    return layout, layout if layout.mesh.size > 1 else None


def open_model(
    directory: str, module: Any, *, sequence_length: int, layout: Layout, step: int | None
) -> Opened:
    """The model of a run.

    Args:
      directory: of the run.
      module: `Decoder` or `ScalarDecoder` of its sizes.
      sequence_length: L that initialisation traces.
      layout: where the arrays are put.
      step: of the checkpoint; None is the newest.

    Raises:
      FileNotFoundError: no run, or none that has saved anything.
      ValueError: its arrays are not those of the module.
    """
    path = pathlib.Path(directory)
    abstract = abstract_model(module, sequence_length=sequence_length, layout=layout)
    try:
        found = checkpoint.restore_model(path / "checkpoints", abstract, step=step)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{path}: {error}") from error
    manifest = path / "checkpoints" / f"step_{found.step:08d}" / "manifest.json"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    tokenizer = tokenizers.load(path / "tokenizer.json")
    return Opened(found, tokenizer, {"step": found.step, "manifest_sha256": digest})


def abstract_model(module: Any, *, sequence_length: int, layout: Layout) -> TrainState:
    """Shapes and placement of a model's parameters, moments left aside."""
    return state.abstract(
        module, optimizer.without_moments(), sequence_length=sequence_length, mesh=layout.mesh
    )


def begin(
    directory: pathlib.Path,
    spec: Any,
    tokenizer: Tokenizer,
    inputs: dict[str, Any],
    *,
    step: int,
) -> None:
    """Writes what the run is; of one that has begun, checks that its inputs are the same.

    Raises:
      ValueError: another file or model stands where the run's inputs stood.
    """
    path = directory / "record.json"
    if workdir.has_begun(directory):
        check(directory, inputs)
        workdir.record_start(path, spec.mesh, step=step)
        return
    tokenizer.save(directory / "tokenizer.json")
    workdir.write_json(path, {**workdir.setup_of(spec.mesh), "inputs": inputs, "gone_on": []})
    workdir.write_config(directory, spec)


def check(directory: pathlib.Path, inputs: dict[str, Any]) -> None:
    """Raises unless the inputs are those that the run in a directory began with.

    Raises:
      ValueError: names the first that differs.
    """
    path = directory / "record.json"
    saved = workdir.read_json(path)["inputs"]
    for name, value in inputs.items():
        if saved[name] != value:
            raise ValueError(f"{path}: the run began with {name} {saved[name]}, now it is {value}")
