"""What a stage reads of the stages before it, checked before anything compiles. Floor 6."""

import hashlib
import pathlib
from typing import Any, NamedTuple

import jax

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.policy_spec import PolicyRunSpec
from deepseek_jax.core.stage_spec import RewardRunSpec, RolloutSpec
from deepseek_jax.data import tokenizers
from deepseek_jax.data.problems import encoded, problem
from deepseek_jax.data.problems.encoded import EncodedProblems
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.ops import answers
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.reinforcement import learner
from deepseek_jax.training import checkpoint, optimizer, state, workdir
from deepseek_jax.training.state import TrainState


class Opened(NamedTuple):
    """A model of an earlier run, its tokenizer, and what tells it from others."""

    model: checkpoint.Model
    tokenizer: Tokenizer
    fingerprint: dict[str, Any]


def make_layout(spec: RewardRunSpec | PolicyRunSpec) -> tuple[Layout, Layout | None]:
    """The mesh, and what models are told of it: None on one device."""
    layout = layout_lib.make(spec.mesh, jax.devices())
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


def tokens_of(tokenizer: Tokenizer, model: ModelSpec) -> learner.Tokens:
    """The ids that rollouts need.

    Raises:
      ValueError: the tokenizer has no tags, or more ids than the model.
    """
    tokenizers.check_vocabulary(tokenizer, model_vocab_size=model.vocab_size)
    ids = answers.AnswerIds(*tokenizers.tag_ids(tokenizer), eos=tokenizer.eos_id)
    return learner.Tokens(tokenizer.vocab_size, ids)


def encode(
    listed: list[problem.Problem], tokenizer: Tokenizer, spec: RolloutSpec, *, block_size: int
) -> EncodedProblems:
    """Problems as arrays, prompts padded to whole blocks.

    Raises:
      ValueError: a prompt or an answer is longer than the settings say; names it.
    """
    made = encoded.encode(
        listed,
        tokenizer,
        prompt_width=-(-spec.prompt_width // block_size) * block_size,
        answer_width=spec.answer_width,
        bos=True,
    )
    longest = int(made.lengths.max())
    if longest > spec.prompt_width:
        raise ValueError(f"rollout.prompt_width={spec.prompt_width}: a prompt has {longest} tokens")
    return made


def begin(
    directory: pathlib.Path,
    spec: RewardRunSpec | PolicyRunSpec,
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
        saved = workdir.read_json(path)["inputs"]
        for name, value in inputs.items():
            if saved[name] != value:
                raise ValueError(
                    f"{path}: the run began with {name} {saved[name]}, now it is {value}"
                )
        workdir.record_start(path, spec.mesh, step=step)
        return
    tokenizer.save(directory / "tokenizer.json")
    workdir.write_json(path, {**workdir.setup_of(spec.mesh), "inputs": inputs, "gone_on": []})
    workdir.write_config(directory, spec)
