"""What a policy says of its tokens: log-probabilities and entropies. Floor 1: arrays only.

Row coordinates, in all objectives on policies: position t of a row predicts the token at
t + 1, and a mask is True where that token belongs to the response.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.objectives import next_token


def token_logprobs(
    logits: Float[Array, "B L V"], targets: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """Log-probability of each target, in nats: logits_target - logsumexp_v(logits_v).

    Args:
      logits: [B, L, V] unnormalised, any float dtype; -inf bars a token.
      targets: [B, L] int32, in [0, V).

    Returns:
      [B, L] float32, at most 0; -inf where the target is barred.
    """
    return -next_token.next_token_terms(logits, targets)


def token_entropies(logits: Float[Array, "B L V"]) -> Float[Array, "B L"]:
    """Entropy of the next token at each position: -sum_v p_v log p_v, with 0 log 0 = 0.

    Args:
      logits: [B, L, V] unnormalised, any float dtype; -inf bars a token.

    Returns:
      [B, L] float32, nats, between 0 and log V.
    """
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    possible = logprobs > -jnp.inf
    finite = jnp.where(possible, logprobs, 0.0)
    return -jnp.sum(jnp.where(possible, jnp.exp(finite) * finite, 0.0), axis=-1)
