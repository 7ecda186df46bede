"""Typed, frozen settings of the stage that learns from people's preferences. Floor 0.

`PreferenceRunSpec` is the whole config file, as those of `stage_spec` are of their stages.
"""

import dataclasses
from typing import Literal

from deepseek_jax.core import mesh_spec, stage_spec
from deepseek_jax.core.config import require
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.run_spec import OptimizerSpec
from deepseek_jax.core.stage_spec import StageTrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceFilesSpec:
    """What the stage reads.

    Attributes:
      pairs: JSONL file of chosen and rejected dialogues, plain or gzip; None is HH-RLHF's in the
        folder of the environment variable DEEPSEEK_JAX_DATA.
      start_from: run directory whose model and tokenizer are the start.
    """

    pairs: str | None
    start_from: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferencePairsSpec:
    """The pairs, what is done with those that say nothing or do not fit, and the loss.

    What is left out is counted and listed in `record.json`; nothing is ever cut.

    Attributes:
      sequence_length: L, tokens of a row: begin token, a whole dialogue, end token.
      heldout_fraction: share of the dialogue openings whose pairs are only measured.
      batch_size: pairs of a step.
      centering_weight: weight of the squared logits in the loss, which keeps them near 0.
      too_long: "error" or "leave_out", of a pair of which a side has more than L tokens.
      blank: the same of a pair of which a side, or its last reply, has no text.
      equal: the same of a pair whose sides do not differ.
    """

    sequence_length: int
    heldout_fraction: float
    batch_size: int
    centering_weight: float
    too_long: Literal["error", "leave_out"]
    blank: Literal["error", "leave_out"]
    equal: Literal["error", "leave_out"]

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name, least in (("sequence_length", 3), ("batch_size", 1)):
            value = getattr(self, name)
            require(value >= least, f"pairs.{name}", value, f"at least {least}")
        require(
            0.0 < self.heldout_fraction < 1.0,
            "pairs.heldout_fraction",
            self.heldout_fraction,
            "in (0, 1)",
        )
        require(
            self.centering_weight >= 0.0,
            "pairs.centering_weight",
            self.centering_weight,
            "at least 0",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceRunSpec:
    """A config file of the stage that trains a reward model on people's preferences."""

    stage: Literal["preferences"]
    seed: int
    model: ModelSpec
    mesh: MeshSpec
    files: PreferenceFilesSpec
    pairs: PreferencePairsSpec
    optimizer: OptimizerSpec
    train: StageTrainSpec

    def __post_init__(self) -> None:
        """Checks the rules that span two nodes."""
        stage_spec.check_rows(self.seed, self.model, self.optimizer, self.train.num_steps)
        mesh_spec.check_fit(self.mesh, self.model, num_rows=self.pairs.batch_size)
        require(self.mesh.exchange == "exact", "mesh.exchange", self.mesh.exchange, '"exact"')
        length = self.pairs.sequence_length
        require(
            length % self.model.block_size == 0 and length <= self.model.context_length,
            "pairs.sequence_length",
            length,
            f"a multiple of model.block_size={self.model.block_size}, at most "
            f"model.context_length={self.model.context_length}",
        )
