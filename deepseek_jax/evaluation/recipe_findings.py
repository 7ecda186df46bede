"""What the recipe found: base, reward model and policies, everything its report says. Floor 5.

The recipe trains a base on text, a reward model on pairs of its responses, and policies from the
base; `ARMS` names what is measured. An arm, table or figure that a run does not have is absent or
None, and the report leaves it out.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from deepseek_jax.evaluation import accuracy, history, policy_plots
from deepseek_jax.evaluation.accuracy import Accuracy, Share
from deepseek_jax.evaluation.calibration import Bin

BASE, SUPERVISED, PPO_LEARNED = "base", "supervised", "ppo_learned"
PPO_RULE, GRPO, PPO_NO_KL = "ppo_rule", "grpo", "ppo_no_kl"
# Every arm that a report knows, in the order of its tables.
ARMS = {
    BASE: "base",
    SUPERVISED: "supervised",
    PPO_LEARNED: "PPO, learned reward",
    PPO_RULE: "PPO, rule",
    GRPO: "GRPO, rule",
    PPO_NO_KL: "PPO, learned reward, no KL",
}
# A kind of pairs told right less often than this is a blind spot, whatever its interval.
SEEING = 0.6

Setting = str | int | float | bool | None


class PolicySample(NamedTuple):
    """A prompt, a response, and whether the verifier calls it right."""

    prompt: str
    response: str
    is_right: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A stage, measured on the held-out problems.

    Attributes:
      sampled: accuracy at temperature 1.
      greedy: accuracy of the most likely tokens; None if it was not measured.
      settings: of this stage, by name; the report has a column for each arm.
      records: metrics of each iteration, in order, with `iteration` or `step` and any of
        `policy_plots.METRICS`; a value that is undefined is None. Empty for an arm without
        reinforcement.
      samples: responses to show, all of them.
    """

    sampled: Accuracy
    greedy: Accuracy | None
    settings: dict[str, Setting]
    records: tuple[dict[str, Any], ...]
    samples: tuple[PolicySample, ...]

    def __post_init__(self) -> None:
        """Raises ValueError for a metric that is not finite."""
        for record in self.records:
            for name in policy_plots.METRICS:
                value = record[name] if name in record else None
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"{name} is {value}, must be finite or None, in {record}")


class PairKind(NamedTuple):
    """Pairs of a good response and one kind of bad one.

    Attributes:
      name: of the bad response, e.g. "good text, one digit of the answer changed".
      accuracy: share of the pairs in which the good one scores higher.
      mean_score: of the bad responses, in 0..1; None if it was not measured.
    """

    name: str
    accuracy: Share
    mean_score: float | None

    @property
    def is_blind(self) -> bool:
        """Whether chance explains the share, or it is below `SEEING`."""
        return self.accuracy.low <= 0.5 or self.accuracy.value < SEEING


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel:
    """The reward model on held-out pairs.

    Attributes:
      pairs: accuracy on pairs drawn as those it was trained on.
      pairs_are: what those pairs are, as the end of "on held-out pairs of ...".
      num_train_pairs: pairs that it was trained on.
      calibration_error: of the same held-out pairs, turned round by a coin.
      num_bins: of the calibration.
      bins: of `calibration.reliability`.
      kinds: built pairs, by the styles of the right and of the wrong response.
      kinds_are: what the names of the styles mean, sentences; empty without any.
    """

    pairs: Share
    pairs_are: str
    num_train_pairs: int
    calibration_error: float
    num_bins: int
    bins: tuple[Bin, ...]
    kinds: tuple[PairKind, ...]
    kinds_are: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArticleRow:
    """A row of the article's table; None is what was not measured.

    Attributes:
      model: what stands in the row here, e.g. "sparse base, trained on text".
      latency_ms: of a token.
      accuracy: on the held-out problems.
      active_parameters: that a token uses.
      total_parameters: of the model.
    """

    model: str
    latency_ms: float | None
    accuracy: Share | None
    active_parameters: int | None
    total_parameters: int | None

    @property
    def utilization(self) -> float | None:
        """Active over total parameters."""
        if self.active_parameters is None or self.total_parameters is None:
            return None
        return self.active_parameters / self.total_parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArticleTable:
    """The article's table, measured.

    Attributes:
      r1: the sparse base trained on text.
      r1_zero: the same after reinforcement.
      dense: a dense baseline in the row of GPT-4.
      latency_is: how the latency was measured, a sentence.
      accuracy_is: which accuracy stands in the table, a sentence.
    """

    r1: ArticleRow
    r1_zero: ArticleRow
    dense: ArticleRow
    latency_is: str
    accuracy_is: str


class StoredArm(NamedTuple):
    """Accuracies of an arm in earlier runs, one for each seed; empty if not measured."""

    sampled: tuple[float, ...]
    greedy: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """Earlier runs of the same recipe.

    Attributes:
      source: where they stand, e.g. a document or a file.
      arms: by the keys of `ARMS`.
    """

    source: str
    arms: dict[str, StoredArm]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problems:
    """What is asked, and what the text that the base learned from holds.

    Attributes:
      name: of the task, as in "3-digit addition".
      steps_are: what a step is, e.g. "columns of the sum".
      procedure_share: share of the documents that work by the right procedure.
      base_accuracy: the share of right answers that the styles of the text were chosen for.
    """

    name: str
    steps_are: str
    procedure_share: float
    base_accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeRun:
    """What was run, on what.

    Attributes:
      name: of the config.
      command: the line that starts it.
      versions: of Python and the packages that the numbers depend on.
      machine: kind and number of devices, cores and the like.
      settings: what all stages share, seed among it.
      stage_seconds: time of each stage, in order, compilation included.
      parameters: counts by name, "total" and "active" among them.
    """

    name: str
    command: str
    versions: dict[str, str]
    machine: str
    settings: dict[str, Setting]
    stage_seconds: dict[str, float]
    parameters: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeFindings:
    """Everything a recipe's report says.

    Attributes:
      run: what was run.
      problems: what is asked.
      arms: by the keys of `ARMS`; the base is always among them.
      reward_model: None if none was trained.
      article: None if nothing of the table was measured.
      stored: earlier runs to stand beside this one; None without any.
    """

    run: RecipeRun
    problems: Problems
    arms: dict[str, Arm]
    reward_model: RewardModel | None
    article: ArticleTable | None
    stored: Stored | None

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown arm, a missing base, or other problems in one arm."""
        unknown = sorted(set(self.arms) - set(ARMS))
        if unknown or BASE not in self.arms:
            raise ValueError(f"arms {sorted(self.arms)}: must be of {list(ARMS)}, with {BASE!r}")
        asked = {name: _num_asked(arm.sampled) for name, arm in self.arms.items()}
        other = [name for name in asked if asked[name] != asked[BASE]]
        if other:
            raise ValueError(
                f"{other[0]} was asked {asked[other[0]]} (steps: problems), the base {asked[BASE]}"
            )

    @property
    def ordered(self) -> dict[str, Arm]:
        """The arms of this run, in the order of `ARMS`."""
        return {name: self.arms[name] for name in ARMS if name in self.arms}

    @property
    def learned(self) -> dict[str, Arm]:
        """The arms that reinforcement made and that stay near their reference."""
        chosen = (PPO_LEARNED, PPO_RULE, GRPO)
        return {name: arm for name, arm in self.ordered.items() if name in chosen}

    @property
    def has_hacking(self) -> bool:
        """Whether both arms that tell of reward hacking were run."""
        return PPO_LEARNED in self.arms and PPO_NO_KL in self.arms

    @property
    def was_hacked(self) -> bool:
        """Whether the run without KL gained reward and ended clearly less right than that with.

        Its last reward is above its first, and the intervals of the accuracies at temperature 1
        have no point in common.
        """
        if not self.has_hacking:
            return False
        free = self.arms[PPO_NO_KL]
        earned = history.policy_curve(free.records, "reward").values
        held, freed = self.arms[PPO_LEARNED].sampled.all, free.sampled.all
        return (
            len(earned) > 1
            and bool(earned[-1] > earned[0])
            and freed.value < held.value
            and accuracy.are_apart(freed, held)
        )


def _num_asked(found: Accuracy) -> dict[int, int]:
    """Problems by their number of steps."""
    return {steps: share.num for steps, share in found.by_steps.items()}


def mean_and_deviation(values: tuple[float, ...]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation; one value has no deviation.

    Raises:
      ValueError: no values.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
