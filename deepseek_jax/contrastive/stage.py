"""A whole run of contrastive pretraining, from settings to a finished directory. Floor 6."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key
from rich import console as rich_console

from deepseek_jax.contrastive import heldout, step
from deepseek_jax.core.contrastive_spec import ContrastiveRunSpec
from deepseek_jax.data import record as corpus_record
from deepseek_jax.data import spans, tokenizers
from deepseek_jax.data.spans import SpanData
from deepseek_jax.nn.span import SpanDecoder
from deepseek_jax.parallel import placement
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.training import optimizer as optimizer_lib
from deepseek_jax.training import stage_inputs, stage_loop, state, workdir
from deepseek_jax.training.loop import Outcome

# Programs of the settings used last.
_KEPT = 4


def train(
    spec: ContrastiveRunSpec,
    run_directory: str | pathlib.Path,
    *,
    console: rich_console.Console,
    given: SpanData | None = None,
) -> Outcome:
    """Reads the text and trains; goes on where it was left.

    Args:
      spec: all settings.
      run_directory: where everything is written.
      console: for the progress.
      given: the text that the settings name, where it has been read before.

    Raises:
      ValueError: the settings, or what stands in the directory or its text, do not fit.
      NonFiniteError: a loss or a gradient is not finite.
    """
    with workdir.claimed(run_directory, spec) as directory:
        data = load_data(directory, spec, given=given)
        for name, side in (("training", data.train), ("held-out", data.heldout)):
            console.print(
                f"{name}: {len(side.token_ids):,} documents with two spans of "
                f"{spec.data.sequence_length} tokens, {side.num_short:,} too short",
                soft_wrap=True,
            )
        stage = _build(spec, data)

        def begin(first: int) -> None:
            if not workdir.has_begun(directory):
                corpus_record.write(data.record, directory / "data" / "corpus.json")
            stage_inputs.begin(directory, spec, data.tokenizer, facts_of(data), step=first)

        return stage_loop.run(stage, spec.train, directory, begin=begin, console=console)


def load_data(
    directory: pathlib.Path, spec: ContrastiveRunSpec, *, given: SpanData | None = None
) -> SpanData:
    """The run's text; of a run that has begun, with the tokenizer and corpus that it began with.

    Args:
      directory: of the run.
      spec: its settings.
      given: what the settings name, where it has been read before; None reads it.

    Raises:
      ValueError: as `spans.load`; another corpus or tokenizer than the run began with, or one with
        more tokens than the model; or there are fewer documents than settings ask for.
    """
    begun = workdir.has_begun(directory)
    tokenizer_path = str(directory / "tokenizer.json") if begun else None
    data = given
    if data is None:
        data = spans.load(spec.data, tokenizer_path=tokenizer_path)
    if begun:
        stage_inputs.check(directory, facts_of(data))
    tokenizers.check_vocabulary(data.tokenizer, model_vocab_size=spec.model.vocab_size)
    for name, asked, side in (
        ("batch_size", spec.contrastive.batch_size, data.train),
        ("eval_documents", spec.contrastive.eval_documents, data.heldout),
    ):
        if asked > len(side.token_ids):
            raise ValueError(
                f"contrastive.{name}={asked}: must be at most {len(side.token_ids)}, the documents "
                "that have two spans"
            )
    return data


def facts_of(data: SpanData) -> dict[str, str]:
    """What tells a run's text from another."""
    return {"corpus": data.record.sha256, "tokenizer": data.tokenizer.sha256}


class _Programs(NamedTuple):
    """Jitted functions, each compiled when it is first called, and the state that they share."""

    abstract: state.TrainState
    initial: Callable[[Key[Array, ""]], state.TrainState]
    train_step: step.SpanStep
    encode: heldout.Encode


@functools.lru_cache(maxsize=_KEPT)
def _programs(spec: ContrastiveRunSpec, layout: Layout) -> _Programs:
    """What a run compiles, made once for equal arguments, as `training/programs.py`.

    Args:
      spec: of the run, with any seed.
      layout: the mesh that all of it lies on, of one device or many.
    """
    on_mesh = layout if layout.mesh.size > 1 else None
    length = spec.data.sequence_length
    model = SpanDecoder(spec.model, contrastive=spec.contrastive)
    matrices = state.parameter_placement(model, sequence_length=length, mesh=layout.mesh)
    optimizer = optimizer_lib.make_optimizer(
        spec.optimizer, num_steps=spec.train.num_steps, placement=matrices
    )
    abstract = state.abstract(model, optimizer, sequence_length=length, mesh=layout.mesh)
    shardings = state.shardings(abstract)
    measured = SpanDecoder(
        spec.model.dropless(),
        None if on_mesh is None else on_mesh.exact(),
        contrastive=spec.contrastive,
    )

    def initial(key: Key[Array, ""]) -> state.TrainState:
        return state.initial_state(model, optimizer, key, sequence_length=length)

    return _Programs(
        abstract,
        jax.jit(initial, out_shardings=shardings),
        step.make_step(spec, optimizer, on_mesh, shardings=shardings),
        heldout.make_encode(measured, heldout.kinds_of(spec.contrastive)[:1]),
    )


def _build(spec: ContrastiveRunSpec, data: SpanData) -> stage_loop.Stage:
    layout, _ = stage_inputs.make_layout(spec.mesh)
    length = spec.data.sequence_length
    compiled = _programs(dataclasses.replace(spec, seed=0), layout)
    pairs = heldout.pairs(data.heldout, num=spec.contrastive.eval_documents, span_length=length)

    def advance(now: Any, number: int) -> Any:
        taken = spans.batch(
            data.train,
            step=number,
            batch_size=spec.contrastive.batch_size,
            span_length=length,
            seed=spec.seed,
        )
        rows = {"rows": np.concatenate([taken.first, taken.second])}
        return compiled.train_step(
            now, placement.put_whole_rows(layout, rows)["rows"], taken.groups
        )

    def measure(now: state.TrainState) -> dict[str, float]:
        variables = {"params": now.params, "balance": now.balance}
        return heldout.measure(
            compiled.encode,
            variables,
            pairs,
            batch_size=2 * spec.contrastive.batch_size,
            layout=layout,
        )

    return stage_loop.Stage(
        compiled.abstract,
        lambda: compiled.initial(jax.random.key(spec.seed)),
        advance,
        measure,
    )
