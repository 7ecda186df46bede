"""One training step on described tasks, and which answers the model gets right. Floor 6."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from deepseek_jax.nn.steered import SteeredDecoder
from deepseek_jax.objectives import masked, next_token
from deepseek_jax.steering.batches import Batch
from deepseek_jax.training import step as step_lib
from deepseek_jax.training.state import TrainState

Metrics = dict[str, Array]


def make_step(
    model: SteeredDecoder,
    optimizer: optax.GradientTransformation,
    *,
    shardings: TrainState | None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A jitted step; it consumes its state.

    The loss is the mean over the tokens of the answers, and the balancing loss. A step whose
    numbers are not finite changes nothing.

    Args:
      model: whatever mesh it lies on.
      optimizer: makes the updates.
      shardings: how the new state lies on a mesh; None on one device.
    """

    def loss(params: PyTree, balance: PyTree, batch: Batch) -> tuple[Array, Metrics]:
        output = _applied(model, {"params": params, "balance": balance}, batch)
        targets, target_mask = jnp.asarray(batch.rows.targets), jnp.asarray(batch.rows.target_mask)
        terms = next_token.next_token_terms(output.logits, targets)
        value = masked.masked_mean(terms, target_mask)
        right = _is_right(output.logits, batch)
        told = {"loss": value, "accuracy": jnp.mean(right, dtype=jnp.float32)}
        return value + output.aux_loss, told | {"aux_loss": output.aux_loss}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradients, told = jax.grad(loss, has_aux=True)(state.params, state.balance, batch)
        told["gradient_norm"] = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new = state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        )
        return step_lib.new_if_finite(new, state, told.values()), told

    return step_lib.jitted(step, shardings)


def make_right(model: SteeredDecoder) -> Callable[[Any, Batch], Bool[Array, " B"]]:
    """A jitted function: (variables, batch) -> whether greedy decoding gives each answer whole.

    Every token of the answer is the likeliest one behind those before it: the same as decoding
    greedily, in one pass.
    """
    return jax.jit(
        lambda variables, batch: _is_right(_applied(model, variables, batch).logits, batch)
    )


def _applied(model: SteeredDecoder, variables: Any, batch: Batch) -> Any:
    rows = batch.rows
    return model.apply(
        variables,
        rows.tokens,
        document_ids=rows.document_ids,
        positions=rows.positions,
        description=batch.description,
    )


def _is_right(logits: Array, batch: Batch) -> Bool[Array, " B"]:
    as_target = jnp.argmax(logits, axis=-1) == batch.rows.targets
    return jnp.all(as_target | ~batch.rows.target_mask, axis=-1)
