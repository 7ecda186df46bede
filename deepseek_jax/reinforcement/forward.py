"""What models say of a rollout: log-probabilities, values, scores. Floor 6."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax.nn.model import Decoder
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.objectives import policy
from deepseek_jax.ops.balance import RouterStats
from deepseek_jax.reinforcement.rollout import Rollout


class PolicyTerms(NamedTuple):
    """Of every position: log-probability of its target and entropy, in nats.

    `aux_loss` and `stats` are those of the decoder.
    """

    logprobs: Float[Array, "B L"]
    entropies: Float[Array, "B L"]
    aux_loss: Float[Array, ""]
    stats: RouterStats | None


class Values(NamedTuple):
    """A number at every position, and the decoder's balancing loss."""

    values: Float[Array, "B L"]
    aux_loss: Float[Array, ""]


def policy_terms(model: Decoder, variables: Mapping[str, Any], rollout: Rollout) -> PolicyTerms:
    """The policy on whole rows: the forward pass that training takes gradients of."""
    output: Any = model.apply(
        variables,
        rollout.tokens,
        document_ids=rollout.document_ids,
        positions=rollout.positions,
    )
    return PolicyTerms(
        policy.token_logprobs(output.logits, rollout.targets),
        policy.token_entropies(output.logits),
        output.aux_loss,
        output.stats,
    )


def values(model: ScalarDecoder, variables: Mapping[str, Any], rollout: Rollout) -> Values:
    """The critic's expectation before each target."""
    output: Any = model.apply(
        variables,
        rollout.tokens,
        document_ids=rollout.document_ids,
        positions=rollout.positions,
    )
    return Values(output.scalars, output.aux_loss)


def final_logits(
    model: ScalarDecoder, variables: Mapping[str, Any], rollout: Rollout
) -> Float[Array, " B"]:
    """The reward model's logit at each row's last token; a sigmoid makes it the score."""
    return at_last_token(values(model, variables, rollout).values, rollout)


def at_last_token(x: Float[Array, "B L"], rollout: Rollout) -> Float[Array, " B"]:
    """The entry of each row's last token."""
    last = jnp.sum(rollout.document_ids, axis=1, keepdims=True) - 1
    return jnp.take_along_axis(x, last, axis=1)[:, 0]
