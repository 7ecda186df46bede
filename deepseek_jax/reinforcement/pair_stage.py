"""What stages that learn from pairs share: the table of pairs, and the training on it. Floor 6."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.preference_spec import PreferenceRunSpec
from deepseek_jax.core.run_spec import OptimizerSpec
from deepseek_jax.core.stage_spec import RewardRunSpec
from deepseek_jax.data import order
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.reinforcement import pairs, reward_model, state
from deepseek_jax.reinforcement.pairs import Pairs
from deepseek_jax.training import checkpoint, stage_loop
from deepseek_jax.training import optimizer as optimizer_lib
from deepseek_jax.training import state as train_state

PAIRS_FILE = "pairs.npz"
# Programs of the settings used last.
_KEPT = 2


class PairTable(NamedTuple):
    """Pairs to train on and pairs to measure, of different problems or dialogues."""

    train: Pairs
    heldout: Pairs


def read(directory: pathlib.Path) -> PairTable | None:
    """The pairs of a run; None if it has none yet."""
    path = directory / PAIRS_FILE
    if not path.exists():
        return None
    with np.load(path) as saved:
        return PairTable(
            *(
                Pairs(*(saved[f"{part}_{name}"] for name in Pairs._fields))
                for part in PairTable._fields
            )
        )


def save(directory: pathlib.Path, table: PairTable) -> None:
    """Writes the pairs of a run; a file already there is replaced at once or not at all."""
    arrays = {
        f"{part}_{name}": array
        for part, listed in table._asdict().items()
        for name, array in listed._asdict().items()
    }
    unfinished = directory / f"unfinished_{PAIRS_FILE}"
    np.savez_compressed(unfinished, **arrays)
    unfinished.replace(directory / PAIRS_FILE)


def describe(table: PairTable) -> str:
    """How many pairs there are, in a line."""
    num_train, num_heldout = (len(part.chosen) for part in table)
    return f"{num_train:,} pairs to train on, {num_heldout:,} held out"


class Programs(NamedTuple):
    """Jitted functions, each compiled when it is first called, and the state that they share.

    Attributes:
      abstract: shapes, dtypes and placement of the state.
      initial: (start, key) -> the state before the first step.
      step: of `reward_model.make_step`; consumes its state.
      scores: of `reward_model.make_scores`.
    """

    abstract: train_state.TrainState
    initial: Callable[[checkpoint.Model, Key[Array, ""]], train_state.TrainState]
    step: reward_model.Step
    scores: reward_model.Scores


@functools.lru_cache(maxsize=_KEPT)
def make_programs(
    model_spec: ModelSpec,
    optimizer_spec: OptimizerSpec,
    *,
    centering_weight: float,
    num_steps: int,
    sequence_length: int,
    layout: Layout,
) -> Programs:
    """What a run compiles, made once for equal arguments, as `training/programs.py`.

    Args:
      model_spec: of the reward model.
      optimizer_spec: of its optimizer.
      centering_weight: of the scores' squares in the loss.
      num_steps: of the whole run, which the learning rate's schedule needs.
      sequence_length: L of the rows.
      layout: the mesh that all of it lies on, of one device or many.
    """
    on_mesh = layout if layout.mesh.size > 1 else None
    scorer = ScalarDecoder(model_spec)
    placement = train_state.parameter_placement(
        scorer, sequence_length=sequence_length, mesh=layout.mesh
    )
    optimizer = optimizer_lib.make_optimizer(
        optimizer_spec, num_steps=num_steps, placement=placement
    )
    abstract = train_state.abstract(
        scorer, optimizer, sequence_length=sequence_length, mesh=layout.mesh
    )
    placed = train_state.shardings(abstract)

    def initial(start: checkpoint.Model, key: Key[Array, ""]) -> train_state.TrainState:
        return state.scalar_state(
            model_spec, optimizer, start, key, sequence_length=sequence_length, bias=0.0
        )

    scorer = ScalarDecoder(model_spec, on_mesh)
    return Programs(
        abstract,
        jax.jit(initial, out_shardings=placed),
        reward_model.make_step(
            scorer,
            optimizer,
            centering_weight=centering_weight,
            shardings=None if on_mesh is None else placed,
        ),
        reward_model.make_scores(scorer),
    )


def build(
    spec: RewardRunSpec | PreferenceRunSpec,
    start: checkpoint.Model,
    table: PairTable,
    layout: Layout,
    *,
    sequence_length: int,
) -> stage_loop.Stage:
    """What a reward model's stage does: a step on a batch of pairs, and their held-out accuracy.

    Args:
      spec: of the run.
      start: the decoder whose backbone is the start.
      table: the pairs.
      layout: the mesh.
      sequence_length: L of the rows.
    """
    compiled = make_programs(
        spec.model,
        spec.optimizer,
        centering_weight=spec.pairs.centering_weight,
        num_steps=spec.train.num_steps,
        sequence_length=sequence_length,
        layout=layout,
    )

    def advance(now: Any, step: int) -> Any:
        ids = order.batch_ids(
            step=step,
            batch_size=spec.pairs.batch_size,
            num_rows=len(table.train.chosen),
            seed=spec.seed,
        )
        return compiled.step(now, pairs.take(table.train, ids))

    def measure(now: train_state.TrainState) -> dict[str, float]:
        variables = {"params": now.params, "balance": now.balance}
        chosen, rejected = reward_model.pair_logits(
            compiled.scores, variables, table.heldout, batch_size=2 * spec.pairs.batch_size
        )
        return {"heldout_pair_accuracy": float(np.mean(chosen > rejected))}

    return stage_loop.Stage(
        compiled.abstract,
        lambda: compiled.initial(start, jax.random.key(spec.seed)),
        advance,
        measure,
    )
