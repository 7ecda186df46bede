"""Typed, frozen settings of contrastive pretraining. Floor 0."""

import dataclasses
from typing import Literal

from deepseek_jax.core import mesh_spec
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
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(
            self.data.prompt_field is None,
            "data.prompt_field",
            self.data.prompt_field,
            "None: spans are of whole documents",
        )
        require(
            self.data.sequence_length % self.model.block_size == 0
            and self.data.sequence_length <= self.model.context_length,
            "data.sequence_length",
            self.data.sequence_length,
            f"a multiple of model.block_size={self.model.block_size}, at most "
            f"model.context_length={self.model.context_length}",
        )
        if self.data.bpe_vocab_size is not None:
            require(
                self.data.bpe_vocab_size <= self.model.vocab_size,
                "data.bpe_vocab_size",
                self.data.bpe_vocab_size,
                f"at most model.vocab_size={self.model.vocab_size}",
            )
        require(
            self.optimizer.warmup_steps < self.train.num_steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"below train.num_steps={self.train.num_steps}",
        )
        mesh_spec.check_fit(self.mesh, self.model, num_rows=2 * self.contrastive.batch_size)
        require(
            self.mesh.exchange == "bounded" or self.model.dispatch == "dropless",
            "mesh.exchange",
            self.mesh.exchange,
            f'"bounded" with model.dispatch={self.model.dispatch!r}',
        )
