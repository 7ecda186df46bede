"""Hand numbers and laws of `ops.routing`, the laws each checked eager and jitted."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import routing
from tests import tolerances

STATIC = ("top_k", "num_groups", "top_groups", "renormalize", "scale")
# (T, E, K, num_groups, top_groups, renormalize); few distinct shapes keep compiles few.
SHAPES = [
    (1, 4, 1, 1, 1, False),
    (5, 8, 3, 4, 2, True),
    (5, 8, 8, 1, 1, True),  # K = E
    (4, 8, 2, 4, 1, False),  # a whole group
    (3, 6, 2, 6, 3, True),  # one expert in a group
    (4, 12, 4, 3, 2, False),
]
SCALE = 2.5


def _floats(low, high, shape):
    return hnp.arrays(np.float32, shape, elements=st.floats(low, high, width=32))


@st.composite
def cases(draw):
    """(scores [T, E], bias [E], settings); ties allowed."""
    num_tokens, num_experts, *sizes, renormalize = draw(st.sampled_from(SHAPES))
    settings = dict(zip(("top_k", "num_groups", "top_groups"), sizes, strict=True))
    settings |= dict(renormalize=renormalize, scale=SCALE)
    scores = draw(_floats(0.0625, 1.0, (num_tokens, num_experts)))
    return jnp.asarray(scores), jnp.asarray(draw(_floats(-2.0, 2.0, num_experts))), settings


@st.composite
def distinct_cases(draw):
    """Cases without ties: sums of two biased scores differ too, since they are powers of 2."""
    scores, _, settings = draw(cases())
    num_tokens, num_experts = scores.shape
    ranks = [draw(st.permutations(range(num_experts))) for _ in range(num_tokens)]
    return jnp.exp2(-jnp.asarray(ranks, jnp.float32)), settings


class TopKRoutingTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_laws(self):
        route = self.variant(routing.top_k_routing, static_argnames=STATIC)

        @hypothesis.given(cases())
        def laws(case):
            scores, bias, settings = case
            ids, weights = route(scores, bias, **settings)
            want = routing.routing_reference(scores, bias, **settings)
            np.testing.assert_array_equal(ids, want.expert_ids)
            np.testing.assert_allclose(weights, want.weights, **tolerances.OP_F32)
            assert ids.dtype == jnp.int32 and weights.dtype == jnp.float32
            group_dim = scores.shape[1] // settings["num_groups"]
            for row in np.asarray(ids):
                assert len(set(row.tolist())) == settings["top_k"]  # distinct
                assert row.min() >= 0 and row.max() < scores.shape[1]
                groups = set((row // group_dim).tolist())
                assert len(groups) <= settings["top_groups"]
            chosen = np.take_along_axis(np.asarray(scores), np.asarray(ids), axis=-1)
            total = np.ones(len(ids)) if settings["renormalize"] else chosen.sum(-1)
            np.testing.assert_allclose(
                weights.sum(-1), settings["scale"] * total, **tolerances.OP_F32
            )

        laws()

    @chex.variants(with_jit=True, without_jit=True)
    def test_tokens_do_not_see_each_other(self):
        route = self.variant(routing.top_k_routing, static_argnames=STATIC)

        @hypothesis.given(cases())
        def law(case):
            scores, bias, settings = case
            straight = route(scores, bias, **settings)
            turned = route(scores[::-1], bias, **settings)
            chex.assert_trees_all_equal(turned, jax.tree.map(lambda a: a[::-1], straight))
            others = scores.at[1:].set(0.5)
            first = jax.tree.map(lambda a: a[0], straight)
            chex.assert_trees_all_equal(
                jax.tree.map(lambda a: a[0], route(others, bias, **settings)), first
            )

        law()

    @chex.variants(with_jit=True, without_jit=True)
    def test_permuted_experts_permute_the_choice(self):
        route = self.variant(routing.top_k_routing, static_argnames=STATIC)

        @hypothesis.given(distinct_cases(), st.randoms(use_true_random=False))
        def law(case, random):
            scores, settings = case
            num_experts, num_groups = scores.shape[1], settings["num_groups"]
            blocks = np.arange(num_experts).reshape(num_groups, -1).tolist()
            random.shuffle(blocks)  # groups map to groups ...
            for block in blocks:
                random.shuffle(block)  # ... and experts move inside them
            moved_from = np.concatenate(blocks)
            straight = route(scores, **settings)
            permuted = route(scores[:, moved_from], **settings)
            np.testing.assert_array_equal(
                moved_from[np.asarray(permuted.expert_ids)], straight.expert_ids
            )
            np.testing.assert_array_equal(permuted.weights, straight.weights)

        law()

    @chex.variants(with_jit=True, without_jit=True)
    def test_bias_reaches_only_the_choice(self):
        route = self.variant(routing.top_k_routing, static_argnames=STATIC)

        def total(scores, bias, **settings):
            weights = routing.top_k_routing(scores, bias, **settings).weights
            return jnp.vdot(weights, jnp.arange(1.0, 1.0 + weights.size).reshape(weights.shape))

        gradient = self.variant(jax.grad(total, argnums=(0, 1)), static_argnames=STATIC)

        @hypothesis.given(cases())
        @hypothesis.settings(max_examples=15)
        def law(case):
            scores, bias, settings = case
            d_scores, d_bias = gradient(scores, bias, **settings)
            np.testing.assert_array_equal(d_bias, 0.0)
            if not settings["renormalize"]:
                assert np.count_nonzero(d_scores) == scores.shape[0] * settings["top_k"]
            # A bias that no choice feels: with K = E and one group it moves the order alone.
            without, with_bias = [
                jnp.sort(
                    route(scores, b, top_k=scores.shape[1], renormalize=True, scale=SCALE).weights
                )
                for b in (None, bias)
            ]
            np.testing.assert_allclose(with_bias, without, **tolerances.OP_F32)

        law()


def test_bias_chooses_and_the_score_weighs():
    scores, bias = jnp.array([[0.5, 0.3, 0.2]]), jnp.array([0.0, 0.0, 1.0])
    ids, weights = routing.top_k_routing(scores, bias, top_k=2)  # biased: 0.5, 0.3, 1.2
    np.testing.assert_array_equal(ids, [[2, 0]])  # unbiased choice would be [0, 1]
    np.testing.assert_allclose(weights, [[0.2, 0.5]], **tolerances.OP_F32)  # biased: 1.2, 0.5
    # eq. 13: 0.2 / 0.7, 0.5 / 0.7; a softmax over the chosen would be 0.4256, 0.5744
    _, weights = routing.top_k_routing(scores, bias, top_k=2, renormalize=True, scale=3.0)
    np.testing.assert_allclose(weights, [[0.6 / 0.7, 1.5 / 0.7]], **tolerances.OP_F32)


def test_groups_by_their_best_two():
    # groups {0, 1}, {2, 3}: best score 0.6 in the first, best two 0.65 against 0.8
    scores = jnp.array([[0.6, 0.05, 0.3, 0.5]])
    ids, _ = routing.top_k_routing(scores, top_k=2, num_groups=2, top_groups=1)
    np.testing.assert_array_equal(ids, [[3, 2]])


def test_only_two_scores_of_a_group_count():
    # groups of three: best two 1.0 against 0.8, all three 1.0 against 1.2
    scores = jnp.array([[0.5, 0.5, 0.0, 0.4, 0.4, 0.4]])
    ids, _ = routing.top_k_routing(scores, top_k=2, num_groups=2, top_groups=1)
    np.testing.assert_array_equal(ids, [[0, 1]])


def test_closed_groups_lose_to_negative_scores():
    # biased -1.5, -1.2 | -1.9, -1.8: a mask that sets closed groups to 0 would choose them
    scores, bias = jnp.array([[0.5, 0.8, 0.1, 0.2]]), jnp.full(4, -2.0)
    ids, _ = routing.top_k_routing(scores, bias, top_k=2, num_groups=2, top_groups=1)
    np.testing.assert_array_equal(ids, [[1, 0]])


def test_groups_are_chosen_by_biased_scores():
    scores, bias = jnp.array([[0.5, 0.5, 0.1, 0.1]]), jnp.array([0.0, 0.0, 1.0, 1.0])
    ids, _ = routing.top_k_routing(scores, bias, top_k=1, num_groups=2, top_groups=1)
    np.testing.assert_array_equal(ids, [[2]])


def test_ties_go_to_the_lower_id():
    ids, _ = routing.top_k_routing(jnp.full((1, 8), 0.5), top_k=3, num_groups=4, top_groups=2)
    np.testing.assert_array_equal(ids, [[0, 1, 2]])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_every_expert_is_reachable(kind):
    # Token t favours expert t, then t + 1. Ids ranked twice would always be 0 and 1.
    num_experts = 16
    eye = jnp.eye(num_experts)
    logits = 4.0 * eye + 2.0 * jnp.roll(eye, 1, axis=1)
    scores = routing.router_scores(logits, kind=kind)
    ids, _ = routing.top_k_routing(scores, top_k=2, num_groups=4, top_groups=2)
    np.testing.assert_array_equal(ids[:, 0], np.arange(num_experts))
    np.testing.assert_array_equal(ids[:, 1], (np.arange(num_experts) + 1) % num_experts)


def test_scores_by_hand():
    # softmax of log 1, log 3: 1/4, 3/4;  sigmoid (eq. 15) of the same: 1/2, 3/4
    logits = jnp.log(jnp.array([[1.0, 3.0]]))
    soft = routing.router_scores(logits, kind="softmax")
    np.testing.assert_allclose(soft, [[0.25, 0.75]], **tolerances.OP_F32)
    sigmoid = routing.router_scores(logits, kind="sigmoid")
    np.testing.assert_allclose(sigmoid, [[0.5, 0.75]], **tolerances.OP_F32)


def test_gradient_reaches_the_gate():
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0]]))  # softmax 1/8, 2/8, 5/8

    def first_weight(logits, renormalize):
        scores = routing.router_scores(logits, kind="softmax")
        return routing.top_k_routing(scores, top_k=2, renormalize=renormalize).weights[0, 0]

    # raw: dp2/dl = p2 (onehot - p): also the expert that was not chosen is pushed
    raw = jax.grad(first_weight)(logits, False)
    np.testing.assert_allclose(raw, [[-5 / 64, -10 / 64, 15 / 64]], **tolerances.OP_F32)
    # renormalized: a softmax over the two chosen, q = (2/7, 5/7)
    renormalized = jax.grad(first_weight)(logits, True)
    np.testing.assert_allclose(renormalized, [[0.0, -10 / 49, 10 / 49]], **tolerances.OP_F32)


def test_renormalizing_zeros_is_zero_not_nan():
    _, weights = routing.top_k_routing(jnp.zeros((1, 4)), top_k=2, renormalize=True)
    np.testing.assert_array_equal(weights, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(top_k=5), r"top_k=5 is outside \[1, 4\]"),
        (dict(top_k=0), r"top_k=0 is outside \[1, 4\]"),
        (dict(top_k=3, num_groups=2), r"top_k=3 is outside \[1, 2\]"),
        (dict(top_k=1, num_groups=3), "num_groups=3 is not a divisor of 4"),
        (dict(top_k=1, num_groups=2, top_groups=3), r"top_groups=3 is outside \[1, 2\]"),
    ],
)
def test_rejects_sizes_that_do_not_fit(settings, message):
    for route in (routing.top_k_routing, routing.routing_reference):
        with pytest.raises(ValueError, match=message):
            route(jnp.ones((1, 4)), **settings)


def test_rejects_unknown_scores():
    with pytest.raises(ValueError, match="kind='relu'"):
        routing.router_scores(jnp.ones((1, 4)), kind="relu")  # type: ignore[arg-type]
