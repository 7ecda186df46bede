"""The objective of group relative policy optimization. Floor 1: arrays only.

Advantages come from `advantages.group_advantages`; `masked.mean_of_row_means` reduces.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax.objectives import kl, ppo


def grpo_terms(
    logprobs: Float[Array, "B L"],
    old_logprobs: Float[Array, "B L"],
    reference_logprobs: Float[Array, "B L"],
    advantages: Float[Array, " B"],
    *,
    clip: float,
    kl_coefficient: float,
) -> Float[Array, "B L"]:
    """The objective of each token, negated: to minimise.

    GRPO, arXiv:2402.03300, eq. 3, with r = exp(logprob - old_logprob):

        term = -min(r * A_i, clip(r, 1 - eps, 1 + eps) * A_i) + beta * k3

    All tokens of a response share its advantage; the KL (eq. 4, `kl.kl_k3_terms`) stands in
    the loss, not in the reward.

    Args:
      logprobs: [B, L] float32, nats, of the policy that learns; they alone get a gradient.
      old_logprobs: [B, L] float32, nats, of the policy that drew the tokens.
      reference_logprobs: [B, L] float32, nats, of the reference.
      advantages: [B] float32.
      clip: eps, above 0.
      kl_coefficient: beta, at least 0.

    Returns:
      [B, L] float32, in units of the advantage; not masked (`masked.zeroed` on the inputs).
    """
    chex.assert_rank([logprobs, advantages], [2, 1])
    chex.assert_equal_shape_prefix([logprobs, advantages], 1)
    of_tokens = jnp.broadcast_to(advantages[:, None], logprobs.shape)
    surrogate = ppo.clipped_surrogate_terms(logprobs, old_logprobs, of_tokens, clip=clip)
    return surrogate + kl_coefficient * kl.kl_k3_terms(logprobs, reference_logprobs)
