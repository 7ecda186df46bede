"""Typed, frozen settings of the stages before a policy: problems and reward models. Floor 0.

Each run class is one config file, as `run_spec.RunSpec` is that of a run on text; its `stage`
says which of them a file is for. Every one checks itself when it is made.
"""

import dataclasses
from typing import Literal

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.config import require
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.run_spec import OptimizerSpec

TASKS = ("arithmetic", "lists", "strings", "countdown", "gsm8k")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemsSpec:
    """Which problems are drawn, and what the unlabelled text about them holds.

    Attributes:
      task: "arithmetic", "lists", "strings" or "countdown".
      min_size: smallest size of a problem (digits, items, letters, numbers).
      max_size: largest size; sizes are drawn evenly.
      num_text: documents of unlabelled text.
      num_reward: problems of the reward model.
      num_policy: problems that policies train on.
      num_validation: problems measured during training.
      num_test: problems that no stage sees.
      share_worked: of the text, worked without a mistake.
      share_careless: worked with the task's habitual mistake, which some problems forgive.
      share_guess: answered without working, right now and then.
      share_slip: worked with one wrong step.
    """

    task: Literal["arithmetic", "lists", "strings", "countdown"]
    min_size: int
    max_size: int
    num_text: int
    num_reward: int
    num_policy: int
    num_validation: int
    num_test: int
    share_worked: float
    share_careless: float
    share_guess: float
    share_slip: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.startswith(("num_", "min_")):
                require(value >= 1, f"problems.{field.name}", value, "at least 1")
            if field.name.startswith("share_"):
                require(0.0 <= value <= 1.0, f"problems.{field.name}", value, "in [0, 1]")
        require(
            self.max_size >= self.min_size,
            "problems.max_size",
            self.max_size,
            f"at least problems.min_size={self.min_size}",
        )
        total = self.share_worked + self.share_careless + self.share_guess + self.share_slip
        require(abs(total - 1.0) < 1e-9, "problems.share_*", total, "shares that sum to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemsRunSpec:
    """A config file of the stage that writes problems and text."""

    stage: Literal["problems"]
    seed: int
    problems: ProblemsSpec

    def __post_init__(self) -> None:
        """Checks the seed."""
        require(self.seed >= 0, "seed", self.seed, "at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageTrainSpec:
    """The loop of a stage. Every duration is in steps: of a policy, one is a whole iteration.

    Attributes:
      num_steps: steps of the whole run.
      eval_every: steps between two measurements; the last step is measured too.
      checkpoint_every: steps between two checkpoints; the last step is saved too.
      keep_checkpoints: newest checkpoints kept.
      restore_step: the saved step to go on from; None takes the newest.
    """

    num_steps: int
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int
    restore_step: int | None

    def __post_init__(self) -> None:
        """Checks ranges."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                require(value >= 1, f"train.{field.name}", value, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilesSpec:
    """What a stage reads of the stages before it.

    Attributes:
      problems: directory of the stage "problems".
      start_from: run directory whose model is the start, and the reference.
      reward_from: run directory of a reward model; None without a learned reward.
    """

    problems: str
    start_from: str
    reward_from: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """How answers are drawn.

    Attributes:
      num_prompts: problems of an iteration (of the reward stage: of one call).
      samples_per_prompt: answers drawn for each.
      prompt_width: largest prompt in tokens, the begin token included.
      answer_width: largest right answer in tokens, tags not included.
      max_new_tokens: S; an answer that is longer is cut, and never right.
      temperature: of the sampling; above 0.
    """

    num_prompts: int
    samples_per_prompt: int
    prompt_width: int
    answer_width: int
    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "temperature":
                require(value >= 1, f"rollout.{field.name}", value, "at least 1")
        require(self.temperature > 0.0, "rollout.temperature", self.temperature, "above 0")

    @property
    def num_rows(self) -> int:
        """Answers of an iteration."""
        return self.num_prompts * self.samples_per_prompt

    def sequence_length(self, block_size: int) -> int:
        """L, rows that hold every prompt with its answer, in whole blocks."""
        return -(-(self.prompt_width + self.max_new_tokens) // block_size) * block_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsSpec:
    """Preference pairs, and the loss on them.

    Attributes:
      num_sampled: pairs of answers that the starting model drew, right against wrong.
      num_built: pairs of answers built in every style, right against wrong.
      pairs_per_problem: sampled pairs of one problem at most.
      heldout_fraction: share of the problems whose pairs are only measured.
      batch_size: pairs of a step.
      centering_weight: weight of the squared logits in the loss, which keeps them near 0.
    """

    num_sampled: int
    num_built: int
    pairs_per_problem: int
    heldout_fraction: float
    batch_size: int
    centering_weight: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("num_sampled", "num_built"):
            require(getattr(self, name) >= 0, f"pairs.{name}", getattr(self, name), "at least 0")
        require(
            self.num_sampled + self.num_built >= 1,
            "pairs.num_sampled",
            self.num_sampled,
            "above 0 with pairs.num_built=0",
        )
        for name in ("pairs_per_problem", "batch_size"):
            require(getattr(self, name) >= 1, f"pairs.{name}", getattr(self, name), "at least 1")
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
class RewardRunSpec:
    """A config file of the stage that trains a reward model."""

    stage: Literal["reward"]
    seed: int
    model: ModelSpec
    mesh: MeshSpec
    files: FilesSpec
    rollout: RolloutSpec
    pairs: PairsSpec
    optimizer: OptimizerSpec
    train: StageTrainSpec

    def __post_init__(self) -> None:
        """Checks the rules that span two nodes."""
        check_common(self.seed, self.model, self.rollout, self.optimizer, self.train.num_steps)
        mesh_spec.check_fit(self.mesh, self.model, num_rows=self.pairs.batch_size)
        if self.pairs.num_sampled:
            mesh_spec.check_fit(self.mesh, self.model, num_rows=self.rollout.num_rows)
        require(self.mesh.exchange == "exact", "mesh.exchange", self.mesh.exchange, '"exact"')
        _require_none(self.files.reward_from, "files.reward_from", "stage='reward'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEvalSpec:
    """What `experiments.evaluate` asks of a run when it is to answer problems.

    Attributes:
      task: a drawn task or "gsm8k"; None measures held-out text instead.
      size: of the problems; not read for GSM8K.
      num_problems: how many.
      temperature: 0.0 is greedy.
      max_new_tokens: of an answer.
    """

    task: str | None
    size: int
    num_problems: int
    temperature: float
    max_new_tokens: int

    def __post_init__(self) -> None:
        """Checks the name and ranges."""
        require(self.task is None or self.task in TASKS, "eval.task", self.task, f"one of {TASKS}")
        for name in ("size", "num_problems", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"eval.{name}", getattr(self, name), "at least 1")
        require(self.temperature >= 0.0, "eval.temperature", self.temperature, "at least 0")


def check_common(
    seed: int, model: ModelSpec, rollout: RolloutSpec, optimizer: OptimizerSpec, num_updates: int
) -> None:
    """Checks what every stage that draws answers must hold.

    Raises:
      ValueError: names the setting.
    """
    check_rows(seed, model, optimizer, num_updates)
    block = model.block_size
    cached = -(-rollout.prompt_width // block) * block + rollout.max_new_tokens
    length = max(rollout.sequence_length(block), cached)
    require(
        length <= model.context_length,
        "rollout.max_new_tokens",
        rollout.max_new_tokens,
        f"such that a prompt in whole blocks and its answer, {length} tokens, fit "
        f"model.context_length={model.context_length}",
    )


def check_rows(seed: int, model: ModelSpec, optimizer: OptimizerSpec, num_updates: int) -> None:
    """Checks what every stage whose rows are judged one by one must hold.

    Raises:
      ValueError: names the setting.
    """
    require(seed >= 0, "seed", seed, "at least 0")
    require(
        model.dispatch == "dropless",
        "model.dispatch",
        model.dispatch,
        '"dropless": an answer must not depend on the others',
    )
    require(
        optimizer.warmup_steps < num_updates,
        "optimizer.warmup_steps",
        optimizer.warmup_steps,
        f"below the {num_updates} updates of the run",
    )


def _require_none(value: object, name: str, because: str) -> None:
    require(value is None, name, value, f"None with {because}")
