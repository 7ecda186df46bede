"""A run directory opened to be looked at: settings, tokenizer, model and parameters."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.data import tokenizers
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.decoding import generate, prompts
from deepseek_jax.nn.model import Decoder
from deepseek_jax.parallel import layout
from deepseek_jax.training import checkpoint, metrics, optimizer, state
from experiments import settings


class Trained(NamedTuple):
    """What a run has made so far.

    Attributes:
      run_spec: the settings it was started with.
      tokenizer: of its text.
      model: dropless, whatever it was trained with: an answer depends on its prompt only.
      variables: parameters, and choice biases if it has them.
      step: of the checkpoint.
    """

    run_spec: RunSpec
    tokenizer: Tokenizer
    model: Decoder
    variables: dict[str, Any]
    step: int


def open_run(workdir: pathlib.Path, *, step: int | None = None) -> Trained:
    """Reads a checkpoint of a run, the newest if none is named; changes nothing there.

    Raises:
      FileNotFoundError: no run there, or none that has saved anything.
      CheckpointDamagedError: the checkpoint is not what was saved.
      ValueError: settings, tokenizer and checkpoint do not belong together.
    """
    run_spec = settings.load_run_spec(workdir)
    tokenizer = tokenizers.load(workdir / "tokenizer.json")
    tokenizers.check_vocabulary(tokenizer, model_vocab_size=run_spec.model.vocab_size)
    record = json.loads((workdir / "record.json").read_text(encoding="utf-8"))
    if tokenizer.sha256 != record["tokenizer_sha256"]:
        raise ValueError(
            f"{workdir / 'tokenizer.json'}: sha256 {tokenizer.sha256}, the run began with "
            f"{record['tokenizer_sha256']}"
        )
    model = Decoder(run_spec.model.dropless())
    transform = optimizer.make_optimizer(run_spec.optimizer, num_steps=run_spec.train.num_steps)
    # Whatever mesh a run was trained on, it is opened on one device.
    one_device = layout.make(mesh_spec.ONE_DEVICE, jax.devices())
    abstract = state.abstract(
        model,
        transform,
        sequence_length=run_spec.data.sequence_length,
        mesh=one_device.mesh,
    )
    restored = checkpoint.restore_model(workdir / "checkpoints", abstract, step=step)
    variables = {"params": restored.params, "balance": restored.balance}
    return Trained(run_spec, tokenizer, model, variables, restored.step)


def continuation(
    trained: Trained,
    prompt: str,
    key: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> Iterator[str]:
    """The text behind a prompt, piece by piece, as it is drawn.

    Raises:
      ValueError: prompt and continuation do not fit the model's context.
    """
    tokenizer, spec = trained.tokenizer, trained.run_spec.model
    ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(prompt)]).astype(np.int32)
    tokens, lengths = prompts.pad_prompts(
        [ids], block_size=spec.block_size, pad_id=tokenizer.pad_id
    )
    decoder = tokenizer.stream_decoder()
    for token in generate.stream(
        trained.model,
        trained.variables,
        tokens[0],
        int(lengths[0]),
        key,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        vocab_size=tokenizer.vocab_size,
        end_id=tokenizer.eos_id,
    ):
        yield decoder.push(token)
    yield decoder.finish()


def read_metrics(workdir: pathlib.Path, *, step: int) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` up to a step, in order; a run that was killed may have more."""
    return [line for line in metrics.read_lines(workdir / "metrics.jsonl") if line["step"] <= step]
