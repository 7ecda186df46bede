"""Typed, frozen settings of contrastive pretraining. Floor 0."""

import dataclasses
from typing import Literal

from deepseek_jax.core import run_spec
from deepseek_jax.core.config import require
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.run_spec import DataSpec, OptimizerSpec
from deepseek_jax.core.stage_spec import StageTrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveSpec:
    """Pairs of spans of one document, and the loss on them. A span has data.sequence_length.

    Attributes:
      weight: of the contrastive term beside the next-token loss; 0.0 leaves out the term and the
        projection head, and keeps the spans.
      projection_dim: P, width of the embeddings; 0 with weight 0.0.
      temperature: of the similarities, at the start where it is learned; 0.0 with weight 0.0.
      learn_temperature: whether it is learned.
      batch_size: pairs of a step; each is a negative of all that are of other groups.
      eval_documents: held-out documents, a pair of spans of each, that are measured in training.
    """

    weight: float
    projection_dim: int
    temperature: float
    learn_temperature: bool
    batch_size: int
    eval_documents: int

    def __post_init__(self) -> None:
        """Checks ranges, and that nothing is set that the weight switches off."""
        require(self.weight >= 0.0, "contrastive.weight", self.weight, "at least 0")
        for name in ("projection_dim", "temperature"):
            value = getattr(self, name)
            require(
                (value > 0) == self.is_on and value >= 0,
                f"contrastive.{name}",
                value,
                f"{'above 0' if self.is_on else '0'} with contrastive.weight={self.weight}",
            )
        require(
            self.is_on or not self.learn_temperature,
            "contrastive.learn_temperature",
            self.learn_temperature,
            "False with contrastive.weight=0.0",
        )
        for name in ("batch_size", "eval_documents"):
            value = getattr(self, name)
            require(value >= 2, f"contrastive.{name}", value, "at least 2")

    @property
    def is_on(self) -> bool:
        """Whether there is a contrastive term."""
        return self.weight > 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveRunSpec:
    """A config file of contrastive pretraining."""

    stage: Literal["contrastive"]
    seed: int
    model: ModelSpec
    mesh: MeshSpec
    data: DataSpec
    contrastive: ContrastiveSpec
    optimizer: OptimizerSpec
    train: StageTrainSpec

    def __post_init__(self) -> None:
        """Checks the rules that span two nodes."""
        run_spec.check_text(self.seed, self.model, self.data, self.optimizer, self.train.num_steps)
        run_spec.check_mesh(self.mesh, self.model, num_rows=2 * self.contrastive.batch_size)
        require(
            self.data.prompt_field is None,
            "data.prompt_field",
            self.data.prompt_field,
            "None: spans are of whole documents",
        )
