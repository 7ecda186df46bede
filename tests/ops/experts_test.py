"""Every path through the experts equals the dense oracle, in outputs and gradients."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import dispatch, experts, routing
from tests import tolerances

MODEL_DIM, HIDDEN_DIM = 6, 4
# A block size for the dropless layout, or "capacity" with room for all.
LAYOUTS = [1, 8, "capacity"]
# (T, E, K, how tokens choose, layouts); few distinct shapes keep compiles few.
CASES = {
    "usual": (9, 8, 2, "random", LAYOUTS),
    "all tokens on two experts, six empty": (9, 8, 2, "same", LAYOUTS),
    "all tokens on one expert": (9, 4, 1, "same", [8, "capacity"]),
    "one token": (1, 4, 2, "random", [1, "capacity"]),
    "K = E": (5, 4, 4, "random", [2, "capacity"]),
}


def _inputs(num_tokens, num_experts, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 5)
    inner = (num_experts, MODEL_DIM, HIDDEN_DIM)
    shapes = (inner, inner, (num_experts, HIDDEN_DIM, MODEL_DIM))
    weights = experts.ExpertWeights(
        *(
            jax.random.normal(key, shape).astype(dtype)
            for key, shape in zip(keys[:3], shapes, strict=True)
        )
    )
    x, d_out = jax.random.normal(keys[3], (2, num_tokens, MODEL_DIM))
    return x.astype(dtype), weights, d_out, jax.random.normal(keys[4], (num_tokens, num_experts))


def _route(logits, top_k):
    scores = routing.router_scores(logits, kind="softmax")
    return routing.top_k_routing(scores, top_k=top_k, renormalize=True)


def _through(x, chosen, weights, mask, *, layout):
    """Dispatch, experts and combine in one of `LAYOUTS`."""
    num_experts = weights.gate.shape[0]
    if layout == "capacity":
        plan = dispatch.capacity_plan(
            chosen.expert_ids, mask, num_experts=num_experts, capacity=x.shape[0]
        )
        rows = experts.swiglu_capacity(dispatch.dispatch(x, plan), weights)
    else:
        plan = dispatch.dropless_plan(
            chosen.expert_ids, mask, num_experts=num_experts, block_rows=layout
        )
        rows = experts.swiglu_dropless(
            dispatch.dispatch(x, plan), weights, plan.group_sizes, block_rows=layout
        )
    return dispatch.combine(rows, chosen.weights, plan)


def _reference(x, chosen, weights, mask, *, layout):
    del layout
    return experts.moe_reference(x, chosen, weights, mask)


def _with_gradients(path):
    """Outputs, and gradients for x, the routing weights and the experts' weights."""

    def loss(x, routing_weights, weights, ids, mask, d_out, layout):
        chosen = routing.Routing(ids, routing_weights)
        out = path(x, chosen, weights, mask, layout=layout)
        return jnp.vdot(out.astype(jnp.float32), d_out), out

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)


def _check_case(subject, want, name):
    num_tokens, num_experts, top_k, choice, layouts = CASES[name]
    x, weights, d_out, logits = _inputs(num_tokens, num_experts)
    if choice == "same":
        logits = jnp.broadcast_to(logits[:1], logits.shape)
    chosen = _route(logits, top_k)
    mask = jnp.arange(num_tokens) % 4 != 3  # some padding, where there are enough
    arguments = (x, chosen.weights, weights, chosen.expert_ids, mask, d_out)
    for layout in layouts:
        chex.assert_trees_all_close(
            subject(*arguments, layout), want(*arguments, layout), **tolerances.LAYER_F32
        )


class PathsTest(chex.TestCase):
    subject = staticmethod(jax.jit(_with_gradients(_through), static_argnums=6))
    want = staticmethod(jax.jit(_with_gradients(_reference), static_argnums=6))

    def test_usual_routing_equals_the_reference(self):
        _check_case(self.subject, self.want, "usual")
        _check_case(self.subject, self.want, "all tokens on two experts, six empty")

    @pytest.mark.deep
    def test_edges_equal_the_reference(self):
        for name in ("all tokens on one expert", "one token", "K = E"):
            with self.subTest(case=name):
                _check_case(self.subject, self.want, name)

    @pytest.mark.deep
    def test_usual_routing_equals_the_reference_eagerly(self):
        _check_case(_with_gradients(_through), _with_gradients(_reference), "usual")

    @chex.variants(with_jit=True, without_jit=False)
    def test_laws(self):
        num_tokens, num_experts, top_k = 7, 4, 2
        layer = self.variant(
            lambda x, logits, weights, mask, layout: _through(
                x, _route(logits, top_k), weights, mask, layout=layout
            ),
            static_argnums=4,
        )

        @hypothesis.given(
            st.integers(0, 9999),
            st.sampled_from([2, "capacity"]),
            st.permutations(range(num_experts)),
        )
        def laws(seed, layout, moved_from):
            x, weights, _, logits = _inputs(num_tokens, num_experts, seed=seed)
            mask = jnp.arange(num_tokens) != seed % num_tokens
            out = layer(x, logits, weights, mask, layout)
            np.testing.assert_array_equal(out[~mask], 0.0)  # padding answers nothing
            # tokens do not see each other: new ones everywhere but at token 0
            other = jnp.concatenate([x[:1], x[1:] + 1.0])
            other_logits = jnp.concatenate([logits[:1], -logits[1:]])
            alone = layer(other, other_logits, weights, mask, layout)
            np.testing.assert_allclose(alone[0], out[0], **tolerances.LAYER_F32)
            # experts in another order, with their logits, give the same answer
            order = jnp.asarray(moved_from)
            moved = jax.tree.map(lambda matrices: matrices[order], weights)
            permuted = layer(x, logits[:, order], moved, mask, layout)
            np.testing.assert_allclose(permuted, out, **tolerances.LAYER_F32)

        laws()


@pytest.mark.parametrize("layout", [2, "capacity"])
def test_gradient_reaches_the_gate(layout):
    x, weights, d_out, logits = _inputs(5, 4)

    def loss(path):
        return lambda logits: jnp.vdot(
            path(x, _route(logits, 2), weights, jnp.ones(5, bool), layout=layout), d_out
        )

    got, want = (jax.jit(jax.grad(loss(path)))(logits) for path in (_through, _reference))
    assert (np.abs(want).max(-1) > 1e-3).all()
    np.testing.assert_allclose(got, want, **tolerances.LAYER_F32)


@pytest.mark.deep
@pytest.mark.parametrize("layout", [2, "capacity"])
def test_low_precision_stays_near_the_reference(layout):
    num_tokens, num_experts, top_k = 13, 8, 3
    x, weights, d_out, logits = _inputs(num_tokens, num_experts, jnp.bfloat16)
    weights = jax.tree.map(lambda matrices: 0.3 * matrices, weights)
    d_out = d_out.astype(jnp.bfloat16).astype(jnp.float32)
    chosen = _route(logits, top_k)
    rest = (chosen.expert_ids, jnp.ones(num_tokens, bool), d_out, layout)
    subject = jax.jit(_with_gradients(_through), static_argnums=6)
    got = subject(x, chosen.weights, weights, *rest)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (x, chosen.weights, weights))
    want = _with_gradients(_reference)(*wide, *rest)
    assert got[0][1].dtype == jnp.bfloat16 and got[1][1].dtype == jnp.float32
    got = jax.tree.map(lambda a: a.astype(jnp.float32), (got[0][1], got[1]))
    chex.assert_trees_all_close(got, (want[0][1], want[1]), **tolerances.BF16)


def test_swiglu_by_hand():
    # silu(2 * 1) * (2 * 3) * 0.5 = 1.761594 * 6 * 0.5; gate and up exchanged: 5.985164
    matrices = [jnp.full((1, 1), value) for value in (1.0, 3.0, 0.5)]
    out = experts.swiglu_dense(jnp.array([[2.0]]), *matrices)
    np.testing.assert_allclose(out, [[5.284782]], **tolerances.OP_F32)


def test_dense_is_one_expert_of_weight_one():
    x, weights, _, _ = _inputs(5, 1)
    chosen = routing.Routing(jnp.zeros((5, 1), jnp.int32), jnp.ones((5, 1)))
    np.testing.assert_allclose(
        experts.swiglu_dense(x, *(matrices[0] for matrices in weights)),
        experts.moe_reference(x, chosen, weights, jnp.ones(5, bool)),
        **tolerances.LAYER_F32,
    )


def test_reference_by_hand():
    # Experts multiply by silu(1) * e; token 0 takes 0.25 of expert 1 and 0.5 of expert 2.
    def column(values):
        return jnp.asarray(values).reshape(-1, 1, 1)

    weights = experts.ExpertWeights(
        column([1.0, 1.0, 1.0]), column([1.0, 1.0, 1.0]), column([1.0, 10.0, 100.0])
    )
    chosen = routing.Routing(jnp.array([[1, 2], [0, 1]]), jnp.array([[0.25, 0.5], [1.0, 1.0]]))
    out = experts.moe_reference(jnp.ones((2, 1)), chosen, weights, jnp.array([True, False]))
    np.testing.assert_allclose(out, [[0.7310586 * 52.5], [0.0]], **tolerances.OP_F32)


def test_rejects_rows_that_do_not_split_into_equal_groups():
    _, weights, _, _ = _inputs(1, 4)
    with pytest.raises(ValueError, match="num_rows=6 is not a multiple of 4"):
        experts.swiglu_capacity(jnp.ones((6, MODEL_DIM)), weights)
