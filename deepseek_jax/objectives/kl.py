"""How far a policy has moved from a reference, from its own samples. Floor 1: arrays only.

KL means KL(policy || reference) in nats, the tokens drawn from the policy. Terms are neither
masked nor reduced.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from deepseek_jax.objectives import masked

_LARGEST_ERROR = 0.2


def kl_k1_terms(
    logprobs: Float[Array, "B L"], reference_logprobs: Float[Array, "B L"]
) -> Float[Array, "B L"]:
    """The plain estimator of the KL: log p - log q, p the policy and q the reference.

    Schulman, "Approximating KL divergence" (2020), k1: its mean over samples of p is the KL;
    one term may be negative.

    Args:
      logprobs: [B, L] float32, nats, of the policy.
      reference_logprobs: [B, L] float32, nats; they get no gradient.

    Returns:
      [B, L] float32, nats.
    """
    chex.assert_equal_shape([logprobs, reference_logprobs])
    return logprobs - jax.lax.stop_gradient(reference_logprobs)


def kl_k3_terms(
    logprobs: Float[Array, "B L"], reference_logprobs: Float[Array, "B L"]
) -> Float[Array, "B L"]:
    """The estimator of the KL that is never negative: q / p - log(q / p) - 1.

    Schulman, "Approximating KL divergence" (2020), k3; GRPO, arXiv:2402.03300, eq. 4. Its mean
    over samples of p is the KL too.

    Args:
      logprobs: [B, L] float32, nats, of the policy.
      reference_logprobs: [B, L] float32, nats; they get no gradient.

    Returns:
      [B, L] float32, nats: at least 0 but for rounding, 0 where both agree.
    """
    log_ratio = -kl_k1_terms(logprobs, reference_logprobs)
    return jnp.expm1(log_ratio) - log_ratio


def penalized_rewards(
    final_rewards: Float[Array, " B"],
    logprobs: Float[Array, "B L"],
    reference_logprobs: Float[Array, "B L"],
    mask: Bool[Array, "B L"],
    *,
    coefficient: Float[Array, ""],
) -> Float[Array, "B L"]:
    """Rewards of the tokens: the KL penalty on each, the score of the response on its last.

    arXiv:1909.08593, eq. 2, R(x, y) = r(x, y) - beta log(p(y|x) / q(y|x)), spread over tokens.

    Args:
      final_rewards: [B] float32, one score for each response.
      logprobs: [B, L] float32, nats, of the policy that drew the tokens.
      reference_logprobs: [B, L] float32, nats.
      mask: [B, L] bool, one run of True in each row; outside of it anything may stand.
      coefficient: beta, [] float32, units of reward for each nat.

    Returns:
      [B, L] float32, in units of reward, 0 outside the mask; a row sums to its R(x, y), or
      to 0 if its mask is empty.
    """
    chex.assert_rank([final_rewards, logprobs, reference_logprobs, mask], [1, 2, 2, 2])
    chex.assert_equal_shape([logprobs, reference_logprobs, mask])
    chex.assert_equal_shape_prefix([final_rewards, mask], 1)
    penalties = coefficient * kl_k1_terms(
        masked.zeroed(logprobs, mask), masked.zeroed(reference_logprobs, mask)
    )
    num_left = jax.lax.cumsum(mask.astype(jnp.int32), axis=1, reverse=True)
    is_last = mask & (num_left == 1)
    return jnp.where(is_last, final_rewards[:, None], 0.0) - masked.zeroed(penalties, mask)


def adapted_coefficient(
    coefficient: Float[Array, ""],
    observed_kl: Float[Array, ""],
    *,
    target: float,
    horizon: float,
    num_samples: int,
) -> Float[Array, ""]:
    """The KL coefficient after a batch, moved so that the KL comes to its target.

    arXiv:1909.08593, section 2.2, with K_beta = num_samples / horizon as in its released code:

        e = clip((KL - target) / target, -0.2, 0.2),  beta' = beta * (1 + K_beta * e)

    Args:
      coefficient: beta, [] float32, above 0.
      observed_kl: [] float32, nats, mean over the batch, in the unit of the target (of a whole
        response, or of a token).
      target: nats, above 0.
      horizon: samples after which a lasting error of 0.2 has moved beta by about 20 percent;
        at least 0.2 * num_samples, or beta would change its sign.
      num_samples: responses in the batch.

    Returns:
      [] float32: larger if the KL was above its target, smaller if below.
    """
    chex.assert_rank([coefficient, observed_kl], 0)
    error = jnp.clip((observed_kl - target) / target, -_LARGEST_ERROR, _LARGEST_ERROR)
    return coefficient * (1.0 + error * (num_samples / horizon))
