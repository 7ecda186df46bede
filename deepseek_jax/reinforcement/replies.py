"""Which of two replies a decoder finds likelier, without any reward model. Floor 6."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.nn.model import Decoder
from deepseek_jax.objectives import policy
from deepseek_jax.reinforcement import reward_model
from deepseek_jax.reinforcement.pairs import Pairs


def gaps(
    model: Decoder, variables: Any, listed: Pairs, *, batch_size: int
) -> Float[np.ndarray, " N"]:
    """By how much the mean log-probability of what is said differs between the sides of pairs.

    What both rows of a pair begin with is left aside: what is left, the end token too, is what
    was compared, given the dialogue before it.

    Args:
      model: the decoder.
      variables: of it.
      listed: N pairs.
      batch_size: rows of one forward pass.

    Returns:
      Mean log-probability of a token of the chosen side less that of the rejected one, in nats.
    """
    first = np.argmax(listed.chosen != listed.rejected, axis=1).astype(np.int32)
    mean_logprobs = _make_mean_logprobs(model)
    chosen, rejected = (
        reward_model.in_batches(
            mean_logprobs, variables, rows, first, lengths, batch_size=batch_size
        )
        for rows, lengths in (
            (listed.chosen, listed.chosen_lengths),
            (listed.rejected, listed.rejected_lengths),
        )
    )
    return chosen - rejected


def _make_mean_logprobs(model: Decoder) -> Callable[..., Float[Array, " B"]]:
    """A jitted function: (variables, rows [B, L], firsts [B], lengths [B]) -> means [B]."""

    @jax.jit
    def mean_logprobs(
        variables: Any,
        tokens: Int[Array, "B L"],
        firsts: Int[Array, " B"],
        lengths: Int[Array, " B"],
    ) -> Float[Array, " B"]:
        index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        output: Any = model.apply(
            variables,
            tokens,
            document_ids=(index < lengths[:, None]).astype(jnp.int32),
            positions=jnp.broadcast_to(index, tokens.shape),
        )
        # Position t predicts the token at t + 1.
        logprobs = policy.token_logprobs(output.logits[:, :-1], tokens[:, 1:])
        mask: Bool[Array, "B L-1"] = (index[:, 1:] >= firsts[:, None]) & (
            index[:, 1:] < lengths[:, None]
        )
        return jnp.mean(logprobs, axis=1, where=mask)

    return mean_logprobs
