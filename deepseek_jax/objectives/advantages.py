"""How much better an action was than expected. Floor 1: arrays only.

Row coordinates (`policy`): a mask is one run of True in each row, possibly empty. What stands
outside of it, even NaN, reaches no result and gets no gradient.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from deepseek_jax.objectives import masked

# Below this variance values count as equal but for rounding, and are not blown up to variance 1.
_LEAST_VARIANCE = 1e-8


class Advantages(NamedTuple):
    """[B, L] float32, in units of reward, 0 outside the mask.

    `advantages` of each action over the value expected before it; `returns` = advantages +
    values, the target of the values.
    """

    advantages: Float[Array, "B L"]
    returns: Float[Array, "B L"]


def generalized_advantages(
    rewards: Float[Array, "B L"],
    values: Float[Array, "B L"],
    mask: Bool[Array, "B L"],
    *,
    discount: float,
    gae_lambda: float,
) -> Advantages:
    """Generalized advantage estimation over each row's masked run.

    arXiv:1506.02438, eq. 16, as a recursion from the end of the run:

        A_t = delta_t + gamma * lambda * A_{t+1},  delta_t = r_t + gamma * V_{t+1} - V_t

    with V = A = 0 after the last masked position, where the response ends.

    Args:
      rewards: [B, L] float32, received for the token that position t predicts.
      values: [B, L] float32, expected return before that token, in units of reward.
      mask: [B, L] bool, one run of True in each row.
      discount: gamma, in [0, 1].
      gae_lambda: lambda, in [0, 1]: 0 gives delta_t, 1 the discounted return less the value.

    Returns:
      Advantages and returns, 0 outside the mask.
    """
    chex.assert_rank([rewards, values, mask], 2)
    chex.assert_equal_shape([rewards, values, mask])
    rewards, values = masked.zeroed(rewards, mask), masked.zeroed(values, mask)
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = masked.zeroed(rewards + discount * next_values - values, mask)

    def step(
        later: Float[Array, " B"], now: tuple[Float[Array, " B"], Bool[Array, " B"]]
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        delta, inside = now
        advantage = jnp.where(inside, delta + discount * gae_lambda * later, 0.0)
        return advantage, advantage

    end = jnp.zeros_like(deltas[:, 0])
    _, columns = jax.lax.scan(step, end, (deltas.T, mask.T), reverse=True)
    advantages = columns.T
    return Advantages(advantages=advantages, returns=advantages + values)


def whitened(
    x: Float[Array, "B L"], mask: Bool[Array, "B L"], *, shift_mean: bool
) -> Float[Array, "B L"]:
    """Scaled to variance 1 over the mask, as in arXiv:1909.08593's released code.

        (x - mean) / sqrt(var), the mean added again unless `shift_mean`

    Args:
      x: [B, L] float32.
      mask: [B, L] bool.
      shift_mean: True moves the mean to 0; False leaves it where it is.

    Returns:
      [B, L] float32, 0 outside the mask. A constant x gives exactly 0 (its mean without
      `shift_mean`), for below a variance of 1e-8 x is scaled by 1e4 only.
    """
    chex.assert_equal_shape([x, mask])
    least = jax.lax.stop_gradient(jnp.min(jnp.where(mask, x, jnp.inf)))
    above = jnp.where(mask, masked.zeroed(x, mask) - least, 0.0)  # exact zeros if x is constant
    centred = masked.zeroed(above - masked.masked_mean(above, mask), mask)
    variance = masked.masked_mean(jnp.square(centred), mask)
    scaled = centred * jax.lax.rsqrt(jnp.maximum(variance, _LEAST_VARIANCE))
    if shift_mean:
        return scaled
    return masked.zeroed(scaled + masked.masked_mean(x, mask), mask)


def group_advantages(
    rewards: Float[Array, " B"], *, group_size: int, divide_by_std: bool
) -> Float[Array, " B"]:
    """Advantage of each response over the others to its prompt.

    GRPO, arXiv:2402.03300, section 4.1.2: A_i = (r_i - mean(r)) / std(r) over the group, std
    with denominator `group_size`. Without the division: arXiv:2503.20783.

    Args:
      rewards: [B] float32; consecutive rows form a group.
      group_size: responses to a prompt, at least 2; divides B.
      divide_by_std: whether to divide by the group's standard deviation.

    Returns:
      [B] float32, summing to 0 in each group; exactly 0 where all rewards of a group are equal.

    Raises:
      ValueError: group_size below 2, or B not a multiple of it (trace time).
    """
    chex.assert_rank(rewards, 1)
    if group_size < 2:
        raise ValueError(f"group_size={group_size}: must be at least 2")
    if rewards.shape[0] % group_size:
        raise ValueError(f"group_size={group_size}: must divide the {rewards.shape[0]} rows")
    groups = rewards.reshape(-1, group_size)
    above = groups - groups[:, :1]  # exact zeros if all are equal
    centred = above - jnp.mean(above, axis=1, keepdims=True)
    if divide_by_std:
        variance = jnp.mean(jnp.square(centred), axis=1, keepdims=True)
        centred = centred * jax.lax.rsqrt(jnp.maximum(variance, _LEAST_VARIANCE))
    return centred.reshape(-1)
