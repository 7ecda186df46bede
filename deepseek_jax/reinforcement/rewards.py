"""What an answer earns: a reward model's score, a verifier's word, its format. Floor 6."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from deepseek_jax.core.policy_spec import RewardsSpec
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.ops import answers
from deepseek_jax.reinforcement import forward
from deepseek_jax.reinforcement.rollout import Prompts, Rollout


class Verdict(NamedTuple):
    """What is true of each answer, whatever it earns."""

    is_right: Bool[Array, " B"]
    has_format: Bool[Array, " B"]


class RewardModel(NamedTuple):
    """A trained reward model."""

    model: ScalarDecoder
    variables: Any


def verify(rollout: Rollout, prompts: Prompts, *, ids: answers.AnswerIds) -> Verdict:
    """The array verifier: the right answer is known token by token.

    Args:
      rollout: the answers.
      prompts: with the right answers.
      ids: of the tags; static.
    """
    return Verdict(
        answers.is_right(
            rollout.responses,
            rollout.response_mask,
            prompts.answers,
            prompts.answer_lengths,
            ids=ids,
        ),
        answers.has_format(rollout.responses, rollout.response_mask, ids=ids),
    )


def learned_scores(reward_model: RewardModel, rollout: Rollout) -> Float[Array, " B"]:
    """Scores in [0, 1]; an answer that was cut before its end scores 0."""
    logits = forward.final_logits(reward_model.model, reward_model.variables, rollout)
    return jnp.where(rollout.is_finished, jax.nn.sigmoid(logits), 0.0)


def rewards(
    spec: RewardsSpec, verdict: Verdict, scores: Float[Array, " B"] | None
) -> Float[Array, " B"]:
    """The weighted sum.

    Args:
      spec: the weights.
      verdict: of the verifier.
      scores: of the reward model; None where its weight is 0.

    Returns:
      [B] float32.
    """
    total = spec.right * verdict.is_right.astype(jnp.float32)
    total = total + spec.format * verdict.has_format.astype(jnp.float32)
    if scores is not None:
        total = total + spec.learned * scores
    return total
