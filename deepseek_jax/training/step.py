"""One training step: gradients over microbatches, one update, one set of metrics. Floor 5."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, PyTree

from deepseek_jax.ops import balance as balance_ops
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.training import nats
from deepseek_jax.training.state import TrainState

Batch = Mapping[str, Array]
# (variables, tokens, *, document_ids, positions) -> nn.model.ModelOutput
Apply = Callable[..., Any]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, "StepMetrics"]]


class StepMetrics(NamedTuple):
    """What one step reports; small enough to fetch every step.

    Attributes:
      loss: mean over the batch's targets, nats.
      aux_loss: the balancing losses, weighted, as they enter the gradient.
      gradient_norm: global norm before clipping.
      num_targets: targets of the batch.
      stats: router statistics summed over the batch, leading layer axis; None if dense.
      gradient_is_finite: by parameter, in the order of the leaves of `params`.
    """

    loss: Float[Array, ""]
    aux_loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    num_targets: Float[Array, ""]
    stats: balance_ops.RouterStats | None
    gradient_is_finite: Bool[Array, " P"]


class _Part(NamedTuple):
    """A microbatch's share of the batch's losses, and its router statistics."""

    loss: Float[Array, ""]
    aux_loss: Float[Array, ""]
    stats: balance_ops.RouterStats | None


def make_train_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    num_microbatches: int,
    bias_update_rate: float,
    layout: Layout | None,
    shardings: TrainState | None,
) -> TrainStep:
    """A jitted step that consumes its state (the buffers are donated).

    The loss is the mean over all targets of the batch, so that it doesn't depend on how the
    batch is cut:

        loss = sum over parts of (nats of the part / targets of the batch)

    Logits exist for a chunk of positions at a time (`nats.py`).

    The balancing losses are no sums over tokens; each part's counts by its share of targets.
    The choice bias is frozen within a step and moves by the load of the whole batch. A step
    with a non-finite loss or gradient returns its state as it was (`finite.check` stops the
    run).

    Args:
      apply: the model, `Decoder(spec).apply`.
      optimizer: of `make_optimizer`.
      num_microbatches: equal parts of the batch, run one after the other; divides B. Part i has
        the rows i, i + num_microbatches, ..., so that every device has its share of each.
      bias_update_rate: step of the choice bias; meaningless when the state has no bias.
      layout: the mesh that the model lies on; None on one device.
      shardings: how the new state lies on a mesh, `state.shardings`; None leaves it to JAX.

    Returns:
      (state, batch) -> (state, metrics). A batch has tokens, targets, target_mask,
      document_ids and positions, [B, L].
    """

    def part_loss(
        params: PyTree, balance: PyTree, part: Batch, num_targets: Float[Array, ""]
    ) -> tuple[Float[Array, ""], _Part]:
        output = apply(
            {"params": params, "balance": balance},
            part["tokens"],
            document_ids=part["document_ids"],
            positions=part["positions"],
        )
        weights = part["target_mask"].astype(jnp.float32) / num_targets
        loss = nats.weighted(output, part["targets"], weights, layout=layout)
        share = jnp.sum(part["target_mask"], dtype=jnp.float32) / num_targets
        aux_loss = share * output.aux_loss
        return loss + aux_loss, _Part(loss, aux_loss, output.stats)

    gradient = jax.grad(part_loss, has_aux=True)

    def accumulated(
        state: TrainState, batch: Batch, num_targets: Float[Array, ""]
    ) -> tuple[PyTree, _Part]:
        if num_microbatches == 1:
            return gradient(state.params, state.balance, batch, num_targets)

        def add(total: PyTree, part: Batch) -> tuple[PyTree, _Part]:
            gradients, values = gradient(state.params, state.balance, part, num_targets)
            return jax.tree.map(jnp.add, total, gradients), values

        parts = {
            name: jnp.moveaxis(array.reshape(-1, num_microbatches, *array.shape[1:]), 1, 0)
            for name, array in batch.items()
        }
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        gradients, values = jax.lax.scan(add, zeros, parts)
        return gradients, jax.tree.map(lambda value: jnp.sum(value, axis=0), values)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        num_targets = jnp.sum(batch["target_mask"], dtype=jnp.float32)
        gradients, totals = accumulated(state, batch, num_targets)
        metrics = StepMetrics(
            loss=totals.loss,
            aux_loss=totals.aux_loss,
            gradient_norm=optax.tree.norm(gradients),
            num_targets=num_targets,
            stats=totals.stats,
            gradient_is_finite=jnp.stack(
                [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradients)]
            ),
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updated = state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            balance=moved_biases(state.balance, totals.stats, rate=bias_update_rate),
            opt_state=opt_state,
        )
        told = (metrics.loss, metrics.aux_loss, metrics.gradient_norm)
        return new_if_finite(updated, state, told), metrics

    return jitted(train_step, shardings)


def jitted(step: Callable[..., tuple[Any, Any]], shardings: Any) -> Any:
    """(state, ...) -> (state, metrics) as one program, the state's memory used again where it lay.

    Args:
      step: pure.
      shardings: of the state on a mesh, which it keeps; None on one device.
    """
    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    whole = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole))


def new_if_finite(new: Any, old: Any, values: Iterable[Float[Array, ""]]) -> Any:
    """The new state if all values are finite, else the old one, whole: an update is dropped.

    Args:
      new: the state after an update.
      old: the state before it, of the same structure.
      values: scalars that tell of the update, its gradient's norm among them.
    """
    is_good = jnp.all(jnp.stack([jnp.isfinite(value) for value in values]))
    return jax.tree.map(lambda after, before: jnp.where(is_good, after, before), new, old)


def moved_biases(balance: PyTree, stats: balance_ops.RouterStats | None, *, rate: float) -> PyTree:
    """The choice biases [layers, E] after the loads of a step; an empty tree stays empty."""

    def moved(bias: Float[Array, "layers E"]) -> Float[Array, "layers E"]:
        assert stats is not None
        move = jax.vmap(lambda b, load: balance_ops.updated_choice_bias(b, load, rate=rate))
        return move(bias, stats.load)

    return jax.tree.map(moved, balance)
