"""A reward model: one step on preference pairs, and its scores. Floor 6."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.objectives import preference
from deepseek_jax.reinforcement.pairs import Pairs
from deepseek_jax.training import step as step_lib
from deepseek_jax.training.state import TrainState

Metrics = dict[str, Array]
# (state, pairs) -> (state, metrics)
Step = Callable[[TrainState, Pairs], tuple[TrainState, Metrics]]
# (variables, rows [B, L], lengths [B]) -> logits [B]
Scores = Callable[[Any, Any, Any], Float[Array, " B"]]


def make_step(
    model: ScalarDecoder,
    optimizer: optax.GradientTransformation,
    *,
    centering_weight: float,
    shardings: TrainState | None,
) -> Step:
    """A jitted step on a batch of pairs; it consumes its state.

    The loss is Bradley-Terry's on the logits, and a little of their square.

    Args:
      model: the reward model.
      optimizer: makes the updates.
      centering_weight: of the square.
      shardings: of the state on a mesh, which it keeps; None on one device.
    """

    def loss(params: PyTree, balance: PyTree, pairs: Pairs) -> tuple[Array, Metrics]:
        tokens = jnp.concatenate([pairs.chosen, pairs.rejected])
        lengths = jnp.concatenate([pairs.chosen_lengths, pairs.rejected_lengths])
        variables = {"params": params, "balance": balance}
        logits, aux_loss = _last_logits(model, variables, tokens, lengths)
        chosen, rejected = jnp.split(logits, 2)
        terms = preference.bradley_terry_terms(chosen, rejected)
        centering = preference.centering_terms(chosen, rejected)
        value = jnp.mean(terms)
        told = {
            "loss": value,
            "pair_accuracy": jnp.mean(chosen > rejected, dtype=jnp.float32),
            "score_chosen": jnp.mean(jax.nn.sigmoid(chosen)),
            "score_rejected": jnp.mean(jax.nn.sigmoid(rejected)),
        }
        return value + centering_weight * jnp.mean(centering) + aux_loss, told

    def step(state: TrainState, pairs: Pairs) -> tuple[TrainState, Metrics]:
        gradients, told = jax.grad(loss, has_aux=True)(state.params, state.balance, pairs)
        told["gradient_norm"] = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new = state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        )
        return step_lib.new_if_finite(new, state, told.values()), told

    return step_lib.jitted(step, shardings)


def make_scores(model: ScalarDecoder) -> Scores:
    """A jitted function: (variables, rows [B, L], lengths [B]) -> logits [B]."""
    return jax.jit(
        lambda variables, tokens, lengths: _last_logits(model, variables, tokens, lengths)[0]
    )


def all_logits(
    scores: Scores,
    variables: Any,
    tokens: Int[np.ndarray, "N L"],
    lengths: Int[np.ndarray, " N"],
    *,
    batch_size: int,
) -> Float[np.ndarray, " N"]:
    """The logits of many rows, a batch at a time; the last batch is filled up with row 0."""
    return in_batches(scores, variables, tokens, lengths, batch_size=batch_size)


def in_batches(
    judge: Callable[..., Float[Array, " B"]], variables: Any, *arrays: np.ndarray, batch_size: int
) -> Float[np.ndarray, " N"]:
    """What a function makes of many rows, a batch at a time; row 0 fills up the last batch.

    Args:
      judge: (variables, batches of the arrays) -> [B].
      variables: of a model.
      arrays: [N, ...] each.
      batch_size: B.
    """
    parts = []
    num_rows = len(arrays[0])
    for start in range(0, num_rows, batch_size):
        ids = np.arange(start, start + batch_size)
        ids = np.where(ids < num_rows, ids, 0)
        parts.append(jax.device_get(judge(variables, *(array[ids] for array in arrays))))
    return np.concatenate(parts)[:num_rows]


def pair_logits(
    scores: Scores, variables: Any, listed: Pairs, *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of both sides of pairs.

    Args:
      scores: of `make_scores`.
      variables: of the reward model.
      listed: N pairs.
      batch_size: rows of one forward pass.
    """
    return (
        all_logits(scores, variables, listed.chosen, listed.chosen_lengths, batch_size=batch_size),
        all_logits(
            scores, variables, listed.rejected, listed.rejected_lengths, batch_size=batch_size
        ),
    )


def _last_logits(
    model: ScalarDecoder, variables: Any, tokens: Int[Array, "B L"], lengths: Int[Array, " B"]
) -> tuple[Float[Array, " B"], Float[Array, ""]]:
    """The logit at each row's last token, and the balancing loss."""
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    output: Any = model.apply(
        variables,
        tokens,
        document_ids=(index < lengths[:, None]).astype(jnp.int32),
        positions=jnp.broadcast_to(index, tokens.shape),
    )
    last = jnp.take_along_axis(output.scalars, lengths[:, None] - 1, axis=1)
    return last[:, 0], output.aux_loss
