"""Routed SwiGLU experts as grouped matmuls, from tokens to tokens, moving few bytes. Floor 1.

    y_t = sum over the rows r of t of (w_r silu(x_t gate_e(r)) * (x_t up_e(r))) down_e(r)

arXiv:2002.05202, eq. 5 without biases, in the order of arXiv:2512.14080 (SonicMoE): the weight of
an assignment is part of the hidden layer, so that its gradient is a sum over that layer and the
answers of rows are neither weighed nor kept. Axes: T tokens, K experts of a token, R rows,
E experts, D model, F expert hidden.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax.ops import dispatch, varying
from deepseek_jax.ops.dispatch import Plan
from deepseek_jax.ops.grouped import matmul, spreading
from deepseek_jax.ops.grouped.hopper import gated, gated_back
from deepseek_jax.ops.grouped.hopper import product as hopper_product
from deepseek_jax.ops.grouped.matmul import Backend

# Backends whose kernels can make the hidden layer and its gradients where their matmuls end.
FUSED: tuple[Backend, ...] = ("hopper",)


class Pulled(NamedTuple):
    """The gradients of what the hidden layer is made of."""

    d_gates: Float[Array, "R F"]
    d_ups: Float[Array, "R F"]
    d_weights: Float[Array, " R"]


class _Kernels(NamedTuple):
    """What computes the matmuls, what the backward pass makes again, and what kernels make."""

    backend: Backend
    interpret: bool
    recompute: bool
    fused: bool

    def rows(self, x: Array, plan: Plan) -> Array:
        return rows_of(x, plan, backend=self.backend, interpret=self.interpret)

    def product(self, rows: Array, matrices: Array, plan: Plan, *, transposed: bool) -> Array:
        return matmul.product(
            rows,
            matrices,
            plan.group_sizes,
            backend=self.backend,
            interpret=self.interpret,
            transposed=transposed,
        )

    def outer(self, rows: Array, d_out: Array, plan: Plan) -> Array:
        return matmul.outer(
            rows, d_out, plan.group_sizes, backend=self.backend, interpret=self.interpret
        )

    def hidden(
        self, rows: Array, weights: Array, gate: Array, up: Array, plan: Plan, *, keep: bool
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """The hidden layer, and with `keep` both products that it is made of."""
        if self.fused:
            sizes = plan.group_sizes
            return gated.gated(rows, weights, gate, up, sizes, keep=keep, interpret=self.interpret)
        gates, ups = (self.product(rows, each, plan, transposed=False) for each in (gate, up))
        return weighted_hidden(gates, ups, weights), (gates, ups) if keep else None

    def pulled(
        self, d_answers: Array, down: Array, both: tuple[Array, Array], weights: Array, plan: Plan
    ) -> Pulled:
        """Of the gradient of the rows' answers."""
        if self.fused:
            sizes = plan.group_sizes
            return Pulled(
                *gated_back.gated_back(
                    d_answers, weights, *both, down, sizes, interpret=self.interpret
                )
            )
        d_hidden = self.product(d_answers, down, plan, transposed=True)
        return gradients(*both, weights, d_hidden)

    def d_rows(self, pulled: Pulled, gate: Array, up: Array, plan: Plan) -> tuple[Array, ...]:
        """Arrays whose sum is the gradient of rows."""
        pairs = ((pulled.d_gates, gate), (pulled.d_ups, up))
        if self.fused:
            d_both, matrices = zip(*pairs, strict=True)
            summed = hopper_product.sum_of_products(
                d_both, matrices, plan.group_sizes, transposed=True, interpret=self.interpret
            )
            return (summed,)
        return tuple(self.product(*pair, plan, transposed=True) for pair in pairs)


def routed_swiglu(
    tokens: Float[Array, "T D"],
    weights: Float[Array, "T K"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    plan: Plan,
    *,
    backend: Backend,
    interpret: bool,
    recompute: bool,
    fused: bool,
) -> Float[Array, "T D"]:
    """The weighted answers of each token's experts; differentiable in all but the plan.

    Args:
      tokens: [T, D], any float dtype; finite where a token has a row.
      weights: [T, K] float32, of the assignments.
      gate: [E, D, F] in the dtype of `tokens`.
      up: [E, D, F] same dtype.
      down: [E, F, D] same dtype.
      plan: from `dispatch.dropless_plan` with blocks of one row.
      backend: of all matmuls; static.
      interpret: as `matmul.grouped_matmul`.
      recompute: the rows, copies of tokens, their products with gate and up, and the hidden layer
        are made again in the backward pass; static. Changes no result.
      fused: the hidden layer and its gradients are made by the kernels of the matmuls, and both
        parts of a row's gradient are summed by one, so that fewer bytes move; static. The same up
        to rounding. Only backends in `FUSED` can.

    Returns:
      [T, D] in the dtype of `tokens`, sums in float32; an assignment without a row adds nothing
      and gets no gradient, so that a padding token is zero. The hidden layer, weight included, is
      taken in float32 and rounded once.

    Raises:
      ValueError: the backend can't do these shapes, or has no such kernels (trace time).

    Cost: 6 D F FLOPs a row forward and 12 backward, 16 with `recompute`. Kept for the backward
    pass: the arguments, and without `recompute` R (D + 3 F) numbers.
    """
    chex.assert_rank([plan.row_ids, plan.token_ids], [2, 1])
    chex.assert_equal_shape([weights, plan.row_ids])
    check(tokens, weights, gate, up, down, backend=backend, interpret=interpret)
    if fused and backend not in FUSED:
        raise ValueError(
            f"fused=True: must be False with backend={backend!r}; these can: {', '.join(FUSED)}"
        )
    # The gradient of what is the same on all devices is the sum of theirs.
    arguments = (tokens, weights, gate, up, down, plan)
    leaves = jax.tree.leaves(arguments)
    arguments = jax.tree.map(lambda x: varying.like(x, *leaves), arguments)
    return _routed(*arguments, _Kernels(backend, interpret, recompute, fused))


def check(
    tokens: Any,
    weights: Any,
    gate: Any,
    up: Any,
    down: Any,
    *,
    backend: Backend,
    interpret: bool,
) -> None:
    """Raises as `routed_swiglu` does, for arrays or their shapes and dtypes."""
    chex.assert_rank([tokens, weights], [2, 2])
    chex.assert_type(weights, jnp.float32)
    chex.assert_equal_shape([gate, up])
    num_experts, model_dim, width = gate.shape
    chex.assert_shape(tokens, (weights.shape[0], model_dim))
    chex.assert_shape(down, (num_experts, width, model_dim))
    sizes = jax.ShapeDtypeStruct((num_experts,), jnp.int32)
    num_rows = dispatch.most_rows(*weights.shape, num_experts=num_experts)
    for matrices in (gate, up, down):
        rows = varying.shape_like((num_rows, matrices.shape[1]), tokens)
        matmul.check(rows, matrices, sizes, backend=backend, interpret=interpret)


def choose(
    device: jax.Device,
    tokens: Float[Array, "T D"],
    gate: Float[Array, "E D F"],
    *,
    num_rows: int,
) -> Backend:
    """The fastest backend for a device that can do all matmuls.

    Args:
      device: that will run it.
      tokens: what the rows will be copies of.
      gate: of all experts.
      num_rows: R.
    """
    num_experts, model_dim, width = gate.shape
    rows = varying.shape_like((num_rows, model_dim), tokens)
    sides = ((model_dim, width), (width, model_dim))
    matrices = [varying.shape_like((num_experts, *side), gate) for side in sides]
    return matmul.choose(device, rows, *matrices)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _routed(
    tokens: Array,
    weights: Array,
    gate: Array,
    up: Array,
    down: Array,
    plan: Plan,
    kernels: _Kernels,
) -> Array:
    # Nothing is kept where there is no backward pass.
    return _forward(tokens, weights, gate, up, down, plan, kernels._replace(recompute=True))[0]


def _forward(
    tokens: Array,
    weights: Array,
    gate: Array,
    up: Array,
    down: Array,
    plan: Plan,
    kernels: _Kernels,
) -> tuple[Array, tuple[Any, ...]]:
    rows = kernels.rows(tokens, plan)
    keep = not kernels.recompute
    each_weight = dispatch.row_weights(weights, plan)
    hidden, both = kernels.hidden(rows, each_weight, gate, up, plan, keep=keep)
    answers = kernels.product(hidden, down, plan, transposed=False)
    # Behind a barrier: in a loop over layers XLA would make these twice, once to use them here and
    # once to store them among those of all layers.
    kept = jax.lax.optimization_barrier((rows, hidden, both)) if keep else None
    saved = (None if keep else tokens, weights, gate, up, down, plan, kept)
    return dispatch.summed_rows(answers, row_ids=plan.row_ids), saved


def _backward(
    kernels: _Kernels, saved: tuple[Any, ...], d_out: Array
) -> tuple[Array, Array, Array, Array, Array, None]:
    tokens, weights, gate, up, down, plan, kept = saved
    # What is made again is not to be found equal to what the forward pass made, and kept.
    tokens, weights, d_out = jax.lax.optimization_barrier((tokens, weights, d_out))
    each_weight = dispatch.row_weights(weights, plan)
    if kept is None:
        rows = kernels.rows(tokens, plan)
        kept = rows, *kernels.hidden(rows, each_weight, gate, up, plan, keep=True)
    rows, hidden, both = kept
    d_answers = kernels.rows(d_out, plan)
    pulled = kernels.pulled(d_answers, down, both, each_weight, plan)
    # What parts a row's gradient has are added where those of its token are.
    d_rows = kernels.d_rows(pulled, gate, up, plan)
    return (
        dispatch.summed_rows(*d_rows, row_ids=plan.row_ids),
        jnp.take(pulled.d_weights, plan.row_ids, mode="fill", fill_value=0),
        kernels.outer(rows, pulled.d_gates, plan),
        kernels.outer(rows, pulled.d_ups, plan),
        kernels.outer(hidden, d_answers, plan),
        None,
    )


_routed.defvjp(_forward, _backward)


def rows_of(
    x: Float[Array, "T D"], plan: Plan, *, backend: Backend, interpret: bool
) -> Float[Array, "R D"]:
    """Copies of tokens, or of what belongs to them, in the rows of their experts."""
    if backend in matmul.ON_NVIDIA:
        return spreading.rows_of(x, plan, interpret=interpret)
    return dispatch.take_rows(x, plan.token_ids)


def weighted_hidden(
    gates: Float[Array, "R F"], ups: Float[Array, "R F"], weights: Float[Array, "R 1"]
) -> Float[Array, "R F"]:
    """Gated and weighted in float32, rounded once to the dtype of `gates`."""
    wide, wide_ups = gates.astype(jnp.float32), ups.astype(jnp.float32)
    return (weights * (jax.nn.silu(wide) * wide_ups)).astype(gates.dtype)


def gradients(
    gates: Float[Array, "R F"],
    ups: Float[Array, "R F"],
    weights: Float[Array, "R 1"],
    d_hidden: Float[Array, "R F"],
) -> Pulled:
    """One pass over three arrays that writes two, in float32.

    s = sigmoid(g),  d_w = sum_f d_h (g s u),  d_u = w d_h g s,
    d_g = w d_h u s (1 + g (1 - s))
    """
    wide, wide_ups, wide_d = (x.astype(jnp.float32) for x in (gates, ups, d_hidden))
    share = jax.nn.sigmoid(wide)
    silu, weighted = wide * share, weights * wide_d
    return Pulled(
        d_gates=(weighted * wide_ups * share * (1.0 + wide * (1.0 - share))).astype(gates.dtype),
        d_ups=(weighted * silu).astype(gates.dtype),
        d_weights=jnp.sum(wide_d * (silu * wide_ups), axis=1),
    )
