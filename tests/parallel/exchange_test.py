"""Who travels where: hand numbers, laws, and the expected number of visits by enumeration."""

import dataclasses
import itertools
import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.ops import routing
from deepseek_jax.parallel import exchange
from tests import tiny, tolerances

# (T, K, P, X); few distinct shapes keep compiles few.
SHAPES = [(1, 1, 2, 1), (5, 3, 2, 4), (6, 4, 4, 2), (7, 2, 8, 1), (4, 3, 1, 6)]
STATIC = ("num_devices", "experts_per_device", "capacity")


@st.composite
def choices(draw):
    """(expert_ids [T, K], token_mask [T], sizes of the exchange, rows of a destination)."""
    num_tokens, top_k, num_devices, experts_per_device = draw(st.sampled_from(SHAPES))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_experts = num_devices * experts_per_device
    pool = [random.permutation(num_experts)[:top_k] for _ in range(draw(st.integers(1, 4)))]
    ids = random.choice(np.stack(pool), num_tokens)  # few patterns: some destinations overflow
    mask = random.random(num_tokens) < draw(st.sampled_from([1.0, 0.7]))
    sizes = {"num_devices": num_devices, "experts_per_device": experts_per_device}
    capacity = draw(st.sampled_from([max(1, num_tokens // 3), num_tokens]))
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask), sizes, capacity


def travels(sent, *, num_devices, capacity):
    """(token, destination, ids of its experts there) of every row that is filled."""
    num_tokens = len(sent.plan.row_ids)
    tokens = np.asarray(sent.plan.token_ids).reshape(num_devices, capacity)
    local = np.asarray(sent.local_ids).reshape(num_devices, capacity, -1)
    return [
        (int(tokens[p, row]), p, local[p, row])
        for p, row in itertools.product(range(num_devices), range(capacity))
        if tokens[p, row] < num_tokens
    ]


class ExchangeTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_laws(self):
        make = self.variant(exchange.make, static_argnames=STATIC)

        @hypothesis.given(choices())
        def laws(case):
            ids, mask, sizes, capacity = case
            num_devices, experts_per_device = sizes.values()
            sent = make(ids, mask, capacity=capacity, **sizes)
            kept = exchange.kept_reference(ids, mask, capacity=capacity, **sizes)
            real = np.broadcast_to(np.asarray(mask)[:, None], ids.shape)
            ids = np.asarray(ids)

            def visits(assignments):
                pairs = zip(*np.nonzero(assignments), strict=True)
                return {(int(t), int(ids[t, k]) // experts_per_device) for t, k in pairs}

            rows = travels(sent, num_devices=num_devices, capacity=capacity)
            # a row for a token and a destination, once, and just for those that the oracle keeps
            assert sorted((t, p) for t, p, _ in rows) == sorted(visits(kept))
            for t, p, local in rows:  # in the token's own order of choices
                there = ids[t] // experts_per_device == p
                want = np.where(there, ids[t] - p * experts_per_device, experts_per_device)
                np.testing.assert_array_equal(local, want)
            empty = np.asarray(sent.plan.token_ids) == len(ids)
            np.testing.assert_array_equal(sent.local_ids[empty], experts_per_device)
            # a token's answers come back from each device that it visited, once
            for t, row_ids in enumerate(np.asarray(sent.plan.row_ids)):
                held = row_ids[row_ids < num_devices * capacity]
                assert sorted(held // capacity) == sorted(p for u, p, _ in rows if u == t)
                assert {int(sent.plan.token_ids[row]) for row in held} <= {t}
            assert int(sent.num_visits) == len(visits(real))
            assert int(sent.num_overflowed) == len(visits(real)) - len(visits(kept))
            assert int(sent.num_dropped) == (real & ~kept).sum()
            if capacity == len(ids):
                assert int(sent.num_dropped) == 0

        laws()

    @chex.variants(with_jit=True, without_jit=True)
    def test_a_limit_of_groups_is_a_limit_of_visits(self):
        num_experts, num_groups, top_groups = 16, 4, 2
        choose = self.variant(
            lambda scores: routing.top_k_routing(
                scores, top_k=6, num_groups=num_groups, top_groups=top_groups, renormalize=True
            )
        )
        make = self.variant(exchange.make, static_argnames=STATIC)

        @hypothesis.given(st.integers(0, 2**32 - 1))
        def law(seed):
            logits = np.random.default_rng(seed).normal(size=(8, num_experts))
            ids = choose(routing.router_scores(jnp.asarray(logits, jnp.float32), kind="softmax"))[0]
            sent = make(ids, jnp.ones(8, bool), num_devices=4, experts_per_device=4, capacity=8)
            assert (sent.plan.row_ids < 4 * 8).sum(-1).max() <= top_groups
            assert 8 < int(sent.num_visits) <= 8 * top_groups  # 6 do not fit in one group of 4

        law()


def test_by_hand():
    # Three devices, experts 0 1 | 2 3 | 4 5, two rows a destination.
    #   token 0: 5 4 0  first to device 2, one row for both; then to device 0
    #   token 1: 1 3 2  to device 0; then to device 1, one row for both
    #   token 2: padding
    #   token 3: 2 0 1  to device 1; then to device 0
    # Of device 0's two rows the first is token 1's, whose best expert is there. Tokens 0 and 3
    # follow: token 3 asks with its second choice, before token 0 with its third.
    ids = jnp.array([[5, 4, 0], [1, 3, 2], [0, 1, 2], [2, 0, 1]])
    mask = jnp.array([True, True, False, True])
    sent = exchange.make(ids, mask, num_devices=3, experts_per_device=2, capacity=2)
    np.testing.assert_array_equal(sent.plan.token_ids, [1, 3, 3, 1, 0, 4])  # 4 is none
    np.testing.assert_array_equal(
        sent.local_ids,  # 2 is none
        [
            *[[1, 2, 2], [2, 0, 1]],  # device 0: token 1's expert 1, token 3's 0 and 1
            *[[0, 2, 2], [2, 1, 0]],  # device 1: token 3's expert 2, token 1's 3 and 2
            *[[1, 0, 2], [2, 2, 2]],  # device 2: token 0's experts 5 and 4
        ],
    )
    np.testing.assert_array_equal(  # 6 is none: the token's row is found at its first choice there
        sent.plan.row_ids, [[4, 6, 6], [0, 3, 6], [6, 6, 6], [2, 1, 6]]
    )
    assert (int(sent.num_visits), int(sent.num_overflowed), int(sent.num_dropped)) == (6, 1, 1)


def test_one_visit_without_a_row_drops_all_its_assignments():
    # both tokens want experts 1 and 0 of device 0, which has one row
    ids = jnp.array([[1, 0], [0, 1]])
    sent = exchange.make(ids, jnp.ones(2, bool), num_devices=2, experts_per_device=2, capacity=1)
    np.testing.assert_array_equal(sent.plan.token_ids, [0, 2])
    assert (int(sent.num_visits), int(sent.num_overflowed), int(sent.num_dropped)) == (2, 1, 2)


def model(num_experts, num_groups, top_groups, top_k):
    return dataclasses.replace(
        tiny.SPARSE,
        num_experts=num_experts,
        num_groups=num_groups,
        top_groups=top_groups,
        top_k=top_k,
    )


# (E, groups, open groups, K), and every P that fits
EVEN = [
    ((8, 4, 4, 2), (1, 2, 4, 8)),
    ((12, 6, 6, 4), (1, 2, 3, 6, 12)),
    ((12, 3, 3, 5), (1, 3, 6, 12)),
    ((8, 1, 1, 3), (1, 2, 4, 8)),
]
# whole groups on a device, a group, parts of a group; groups that hardly limit, and that do
LIMITED = [
    ((16, 4, 2, 4), (2, 4, 8)),
    ((32, 8, 4, 4), (8, 16)),
    ((32, 8, 2, 4), (4, 8, 16)),
    ((64, 8, 3, 8), (8,)),
]


def spread(cases):
    return [(settings, num_devices) for settings, fitting in cases for num_devices in fitting]


@pytest.mark.parametrize(("settings", "num_devices"), spread(EVEN), ids=str)
def test_expected_visits_are_the_mean_over_all_choices(settings, num_devices):
    num_experts, _, _, top_k = settings
    counts = [
        len({e // (num_experts // num_devices) for e in chosen})
        for chosen in itertools.combinations(range(num_experts), top_k)
    ]
    visits = exchange.expected_visits(model(*settings), num_devices=num_devices)
    assert math.isclose(visits, np.mean(counts), rel_tol=1e-12)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("settings", "num_devices"), spread(LIMITED), ids=str)
def test_expected_visits_are_those_of_the_router_where_groups_are_limited(
    settings, num_devices, kind
):
    num_experts, num_groups, top_groups, top_k = settings
    logits = jax.random.normal(jax.random.key(1), (20_000, num_experts))
    chosen = routing.top_k_routing(
        routing.router_scores(logits, kind=kind),
        top_k=top_k,
        num_groups=num_groups,
        top_groups=top_groups,
    )
    owners = np.sort(np.asarray(chosen.expert_ids) // (num_experts // num_devices), axis=-1)
    counts = 1 + (np.diff(owners, axis=-1) > 0).sum(-1)
    spec = dataclasses.replace(model(*settings), router_scores=kind)
    visits = exchange.expected_visits(spec, num_devices=num_devices)
    error = counts.std() * math.sqrt(1 / 8192 + 1 / counts.size)
    assert abs(visits - counts.mean()) <= 4 * error + 1e-12
    assert visits <= min(top_k, num_devices)


def test_expected_visits_by_hand():
    # Two of four experts, an expert a device: always 2. Two devices of two: the second expert is
    # one of the three others, of which one is with the first: 1 + 2/3.
    assert exchange.expected_visits(model(4, 1, 1, 2), num_devices=4) == 2.0
    visits = exchange.expected_visits(model(4, 1, 1, 2), num_devices=2)
    np.testing.assert_allclose(visits, 5 / 3, **tolerances.OP_F32)


@pytest.mark.parametrize(
    ("mode", "factor", "num_tokens", "rows"),
    [
        ("exact", 0.0, 7, 7),
        # 5/3 visits over 2 devices: a destination expects 5/6 of the tokens
        ("bounded", 1.0, 12, 10),
        ("bounded", 1.0, 13, 11),  # 10.83, never rounded down
        ("bounded", 1.1, 30, 28),  # 27.5
        ("bounded", 1.5, 12, 12),  # 15, and no more than all tokens
    ],
)
def test_rows_per_destination_by_hand(mode, factor, num_tokens, rows):
    mesh = MeshSpec(data=3, expert=2, model=1, exchange=mode, rows_factor=factor)
    assert exchange.rows_per_destination(mesh, model(4, 1, 1, 2), num_tokens=num_tokens) == rows
