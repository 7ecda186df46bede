"""One step on pairs of spans: the next token, and which spans belong together. Floor 6."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from deepseek_jax.core.contrastive_spec import ContrastiveRunSpec
from deepseek_jax.nn.span import SpanDecoder, SpanOutput
from deepseek_jax.objectives import contrastive, next_token
from deepseek_jax.ops import balance
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.training import nats as nats_lib
from deepseek_jax.training import step as step_lib
from deepseek_jax.training.state import TrainState

# The largest inverse temperature, as in arXiv:2103.00020.
MAX_SCALE = 100.0

Metrics = dict[str, Array]
# (state, rows [2 B, L], groups [B]) -> (state, metrics)
SpanStep = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]


def forward(model: SpanDecoder, variables: Any, rows: Int[Array, "B L"]) -> SpanOutput:
    """The model on spans: one document a row, no padding."""
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1], dtype=jnp.int32), rows.shape)
    output: Any = model.apply(
        variables, rows, document_ids=jnp.ones_like(rows), positions=positions
    )
    return output


def next_token_nats(output: SpanOutput, rows: Int[Array, "B L"]) -> Float[Array, "B L-1"]:
    """Negative log-probabilities of a span's tokens after its first, by the tokens before."""
    return next_token.next_token_terms(output.logits[:, :-1], rows[:, 1:])


def _mean_nats(
    output: SpanOutput, rows: Int[Array, "B L"], layout: Layout | None
) -> Float[Array, ""]:
    """The mean of `next_token_nats`, by chunks of positions; of a span's last nothing follows."""
    num_rows, length = rows.shape
    is_followed = jnp.arange(length)[None] < jnp.full((num_rows, 1), length - 1)
    weights = is_followed.astype(jnp.float32) / (num_rows * (length - 1))
    return nats_lib.weighted(output, jnp.roll(rows, -1, axis=1), weights, layout=layout)


def _capped(params: Any, spec: ContrastiveRunSpec) -> Any:
    """The parameters with a learned scale of at most `MAX_SCALE`; its gradient stays alive."""
    if not spec.contrastive.learn_temperature:
        return params
    head = params["span_head"]
    capped = jnp.minimum(head["log_scale"], math.log(MAX_SCALE))
    return {**params, "span_head": {**head, "log_scale": capped}}


def make_step(
    spec: ContrastiveRunSpec,
    optimizer: optax.GradientTransformation,
    layout: Layout | None,
    *,
    shardings: TrainState | None,
) -> SpanStep:
    """A jitted step; it consumes its state.

        loss = mean next-token nats + weight * mean InfoNCE + balancing losses

    The similarities are of the whole batch, wherever its rows lie: every device's spans are
    negatives of every other's, but for those of the same group.

    Args:
      spec: of the run.
      optimizer: makes the updates.
      layout: the mesh; None is one device.
      shardings: how the new state lies on a mesh; None on one device.
    """
    model = SpanDecoder(spec.model, layout, contrastive=spec.contrastive)

    def loss(
        params: PyTree, choice: PyTree, rows: Int[Array, "R L"], groups: Int[Array, " B"]
    ) -> tuple[Array, tuple[Metrics, balance.RouterStats | None]]:
        output = forward(model, {"params": params, "balance": choice}, rows)
        nats = _mean_nats(output, rows, layout)
        told = {"loss": nats, "aux_loss": output.aux_loss}
        total = nats + output.aux_loss
        if output.projected is not None:
            assert output.scale is not None
            first, second = jnp.split(contrastive.normalized(output.projected), 2)
            terms = contrastive.info_nce_terms(first, second, output.scale, groups)
            told |= {"contrastive_loss": jnp.mean(terms), "temperature": 1.0 / output.scale}
            total += spec.contrastive.weight * told["contrastive_loss"]
        return total, (told, output.stats)

    def step(
        state: TrainState, rows: Int[Array, "R L"], groups: Int[Array, " B"]
    ) -> tuple[TrainState, Metrics]:
        gradients, (told, stats) = jax.grad(loss, has_aux=True)(
            state.params, state.balance, rows, groups
        )
        told["gradient_norm"] = optax.tree.norm(gradients)
        if stats is not None:
            told["load_max_over_mean"] = jnp.max(balance.max_over_mean_load(stats))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new = state._replace(
            step=state.step + 1,
            params=_capped(optax.apply_updates(state.params, updates), spec),
            balance=step_lib.moved_biases(state.balance, stats, rate=spec.model.bias_update_rate),
            opt_state=opt_state,
        )
        return step_lib.new_if_finite(new, state, told.values()), told

    return step_lib.jitted(step, shardings)
