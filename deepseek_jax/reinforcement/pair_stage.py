"""What stages that learn from pairs share: the table of pairs, and the training on it. Floor 6."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from deepseek_jax.core.preference_spec import PreferenceRunSpec
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
    on_mesh = layout if layout.mesh.size > 1 else None
    scorer = ScalarDecoder(spec.model)
    placement = train_state.parameter_placement(
        scorer, sequence_length=sequence_length, mesh=layout.mesh
    )
    optimizer = optimizer_lib.make_optimizer(
        spec.optimizer, num_steps=spec.train.num_steps, placement=placement
    )
    abstract = train_state.abstract(
        scorer, optimizer, sequence_length=sequence_length, mesh=layout.mesh
    )

    def initial(start: checkpoint.Model) -> train_state.TrainState:
        key = jax.random.key(spec.seed)
        return state.scalar_state(
            spec.model, optimizer, start, key, sequence_length=sequence_length, bias=0.0
        )

    step_on_pairs = reward_model.make_step(spec, optimizer, on_mesh)
    scores = reward_model.make_scores(ScalarDecoder(spec.model, on_mesh))

    def advance(now: Any, step: int) -> Any:
        ids = order.batch_ids(
            step=step,
            batch_size=spec.pairs.batch_size,
            num_rows=len(table.train.chosen),
            seed=spec.seed,
        )
        return step_on_pairs(now, pairs.take(table.train, ids))

    def measure(now: train_state.TrainState) -> dict[str, float]:
        variables = {"params": now.params, "balance": now.balance}
        chosen, rejected = reward_model.pair_logits(
            scores, variables, table.heldout, batch_size=2 * spec.pairs.batch_size
        )
        return {"heldout_pair_accuracy": float(np.mean(chosen > rejected))}

    # The start is an argument: as a constant, a large one would stand in the program.
    make = jax.jit(initial, out_shardings=train_state.shardings(abstract))
    return stage_loop.Stage(
        abstract,
        lambda: make(start),
        advance,
        measure,
    )
