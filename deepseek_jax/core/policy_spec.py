"""Typed, frozen settings of policies that learn from rewards: PPO and GRPO. Floor 0."""

import dataclasses
from typing import Literal

from deepseek_jax.core import mesh_spec, stage_spec
from deepseek_jax.core.config import require
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.run_spec import OptimizerSpec
from deepseek_jax.core.stage_spec import FilesSpec, RolloutSpec, StageTrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardsSpec:
    """What an answer earns: a weighted sum.

    Attributes:
      learned: weight of the reward model's score, in [0, 1]; a cut answer scores 0.
      right: weight of a right answer, by the verifier.
      format: weight of the format `<think>..</think><answer>..</answer>`.
    """

    learned: float
    right: float
    format: float

    def __post_init__(self) -> None:
        """Checks that something is rewarded."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(value >= 0.0, f"rewards.{field.name}", value, "at least 0")
        total = self.learned + self.right + self.format
        require(total > 0.0, "rewards.right", self.right, "above 0 where nothing else is rewarded")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KlSpec:
    """What holds the policy to the reference.

    Attributes:
      place: "reward" (a penalty on each token's reward) or "loss" (the k3 term).
      coefficient: beta at the start; 0.0 switches it off.
      target: nats a response that an adaptive coefficient aims at; None keeps it fixed.
      horizon: responses after which a lasting error has moved it by a fifth; None when fixed.
    """

    place: Literal["reward", "loss"]
    coefficient: float
    target: float | None
    horizon: float | None

    def __post_init__(self) -> None:
        """Checks ranges and the pairing of target and horizon."""
        require(self.coefficient >= 0.0, "kl.coefficient", self.coefficient, "at least 0")
        require(
            (self.target is None) == (self.horizon is None),
            "kl.horizon",
            self.horizon,
            "given if and only if kl.target is",
        )
        if self.target is not None and self.horizon is not None:
            require(self.target > 0.0, "kl.target", self.target, "above 0")
            require(self.horizon > 0.0, "kl.horizon", self.horizon, "above 0")
            require(self.coefficient > 0.0, "kl.coefficient", self.coefficient, "above 0 to adapt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateSpec:
    """How often a batch of answers is learned from.

    Attributes:
      clip: eps of the probability ratio.
      num_epochs: times that every answer is seen.
      num_minibatches: equal parts of the batch, each an update.
    """

    clip: float
    num_epochs: int
    num_minibatches: int

    def __post_init__(self) -> None:
        """Checks ranges."""
        require(self.clip > 0.0, "update.clip", self.clip, "above 0")
        require(self.num_epochs >= 1, "update.num_epochs", self.num_epochs, "at least 1")
        require(
            self.num_minibatches >= 1, "update.num_minibatches", self.num_minibatches, "at least 1"
        )

    @property
    def num_updates(self) -> int:
        """Updates of an iteration."""
        return self.num_epochs * self.num_minibatches


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticSpec:
    """Advantages by a critic (PPO).

    Attributes:
      discount: gamma.
      gae_lambda: lambda.
      whiten: whether advantages are scaled to mean 0 and variance 1 over the batch.
      value_clip: eps of the values, in units of reward; None does not clip.
      learning_rate: the critic's; its other optimizer settings are the policy's.
      initial_value: what it expects at first.
    """

    discount: float
    gae_lambda: float
    whiten: bool
    value_clip: float | None
    learning_rate: float
    initial_value: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("discount", "gae_lambda"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"critic.{name}", value, "in [0, 1]")
        if self.value_clip is not None:
            require(self.value_clip > 0.0, "critic.value_clip", self.value_clip, "above 0")
        require(self.learning_rate > 0.0, "critic.learning_rate", self.learning_rate, "above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoRunSpec:
    """A config file of proximal policy optimization."""

    stage: Literal["ppo"]
    seed: int
    model: ModelSpec
    mesh: MeshSpec
    files: FilesSpec
    rollout: RolloutSpec
    rewards: RewardsSpec
    kl: KlSpec
    update: UpdateSpec
    critic: CriticSpec
    optimizer: OptimizerSpec
    train: StageTrainSpec

    def __post_init__(self) -> None:
        """Checks the rules that span two nodes."""
        _check_policy(self)
        if self.kl.horizon is not None:
            least = 0.2 * self.rollout.num_rows
            require(
                self.kl.horizon >= least,
                "kl.horizon",
                self.kl.horizon,
                f"at least {least}, a fifth of the answers of an iteration: below, one could turn "
                "the sign of the coefficient",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """Advantages within the answers to one problem (GRPO).

    Attributes:
      divide_by_std: whether they are divided by the group's standard deviation.
    """

    divide_by_std: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoRunSpec:
    """A config file of group relative policy optimization."""

    stage: Literal["grpo"]
    seed: int
    model: ModelSpec
    mesh: MeshSpec
    files: FilesSpec
    rollout: RolloutSpec
    rewards: RewardsSpec
    kl: KlSpec
    update: UpdateSpec
    group: GroupSpec
    optimizer: OptimizerSpec
    train: StageTrainSpec

    def __post_init__(self) -> None:
        """Checks the rules that span two nodes."""
        _check_policy(self)
        require(
            self.rollout.samples_per_prompt >= 2,
            "rollout.samples_per_prompt",
            self.rollout.samples_per_prompt,
            "at least 2: the others are what an answer is compared with",
        )
        require(self.kl.place == "loss", "kl.place", self.kl.place, '"loss" (GRPO, eq. 3)')
        require(self.kl.target is None, "kl.target", self.kl.target, "None (fixed) for GRPO")


PolicyRunSpec = PpoRunSpec | GrpoRunSpec


def _check_policy(spec: PolicyRunSpec) -> None:
    num_updates = spec.train.num_steps * spec.update.num_updates
    stage_spec.check_common(spec.seed, spec.model, spec.rollout, spec.optimizer, num_updates)
    num_rows = spec.rollout.num_rows
    require(
        num_rows % spec.update.num_minibatches == 0,
        "update.num_minibatches",
        spec.update.num_minibatches,
        f"a divisor of the {num_rows} answers of an iteration",
    )
    mesh_spec.check_fit(spec.mesh, spec.model, num_rows=num_rows // spec.update.num_minibatches)
    require(spec.mesh.exchange == "exact", "mesh.exchange", spec.mesh.exchange, '"exact"')
    require(
        (spec.rewards.learned > 0.0) == (spec.files.reward_from is not None),
        "files.reward_from",
        spec.files.reward_from,
        "given if and only if rewards.learned is above 0",
    )
