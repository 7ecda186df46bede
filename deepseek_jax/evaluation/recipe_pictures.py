"""The pictures beside a recipe's report, and which of them a run has. Floor 5."""

import pathlib

from deepseek_jax.evaluation import history, policy_plots
from deepseek_jax.evaluation.policy_plots import StageRow
from deepseek_jax.evaluation.recipe_findings import ARMS, PPO_LEARNED, PPO_NO_KL, RecipeFindings

STAGES, STEPS = "accuracy_by_stage.png", "accuracy_by_steps.png"
RELIABILITY, REWARD_AND_TRUTH, CURVES = (
    "reliability.png",
    "reward_and_truth.png",
    "policy_curves.png",
)


def has_curves(findings: RecipeFindings) -> bool:
    """Whether any arm measured anything over its iterations."""
    return any(
        len(history.policy_curve(arm.records, metric).steps)
        for arm in findings.arms.values()
        for metric in policy_plots.METRICS
    )


def can_show_hacking(findings: RecipeFindings) -> bool:
    """Whether both arms measured reward and accuracy over their iterations."""
    return findings.has_hacking and all(
        len(history.policy_curve(findings.arms[name].records, metric).steps)
        for name in (PPO_LEARNED, PPO_NO_KL)
        for metric in ("reward", "accuracy")
    )


def draw(findings: RecipeFindings, directory: pathlib.Path) -> None:
    """Writes the pictures that the page names."""
    arms = {ARMS[name]: arm for name, arm in findings.ordered.items()}
    rows = [
        StageRow(name, arm.sampled.all, None if arm.greedy is None else arm.greedy.all)
        for name, arm in arms.items()
    ]
    policy_plots.accuracy_by_stage(directory / STAGES, rows)
    policy_plots.accuracy_by_steps(
        directory / STEPS, {name: arm.sampled for name, arm in arms.items()}
    )
    if findings.reward_model is not None:
        policy_plots.reliability(directory / RELIABILITY, findings.reward_model.bins)
    if can_show_hacking(findings):
        held, freed = findings.arms[PPO_LEARNED], findings.arms[PPO_NO_KL]
        policy_plots.hacking(directory / REWARD_AND_TRUTH, held.records, freed.records)
    if has_curves(findings):
        policy_plots.policy_curves(
            directory / CURVES, {name: arm.records for name, arm in arms.items()}
        )
