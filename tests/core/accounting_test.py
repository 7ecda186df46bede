"""Parameters, bytes and operations: by hand, and against what the program really multiplies."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.core import accounting
from deepseek_jax.nn import model as model_lib
from deepseek_jax.ops import experts, moe
from deepseek_jax.ops.routing import Routing
from tests import tiny

FULL = tiny.VARIANTS["full"]
PACKED = dataclasses.replace(tiny.SPARSE, dispatch="capacity", capacity_factor=1.0)


def test_sparse_parameters_by_hand():
    # tiny.SPARSE: V 50, D 24, 2 layers, 4 and 2 heads of 8, E 8, K 2, F 16, C 4, m 2, tied.
    parts = accounting.count_parameters(tiny.SPARSE).parts
    expert = 3 * 24 * 16  # gate, up, down: 1152
    assert parts == {
        "embedding": (50 * 24, 50 * 24),  # also the head, so active
        "head": (0, 0),
        "attention": (2 * 2304, 2 * 2304),  # 24*32 query, twice 24*16, 32*24 out
        "summaries": (2 * 56, 2 * 56),  # 2 heads * 2 summaries * (8 + 4), and 8 of the norm
        "norms": (2 * (24 + 24 + 8 + 8) + 24,) * 2,
        "router": (2 * 24 * 8, 2 * 24 * 8),
        "experts": (2 * 8 * expert, 2 * 2 * expert),
        "shared_experts": (0, 0),
    }
    count = accounting.count_parameters(tiny.SPARSE)
    assert count.total == 1200 + 4608 + 112 + 152 + 384 + 18432
    assert count.active == count.active_with_embedding == 1200 + 4608 + 112 + 152 + 384 + 4608
    assert count.active_share == count.active / count.total


def test_an_untied_table_is_looked_up_and_shared_experts_are_always_active():
    # tiny.BIASED is untied and has one shared expert.
    count = accounting.count_parameters(tiny.BIASED)
    assert count.embedding == (1200, 0)
    assert count.head == (1200, 1200)
    assert count.shared_experts == (2 * 1152, 2 * 1152)
    assert count.active == 1200 + 4608 + 112 + 152 + 384 + 4608 + 2304
    assert count.active_with_embedding == count.active + 1200


def test_a_dense_model_has_no_router_and_is_active_throughout():
    count = accounting.count_parameters(tiny.DENSE)
    assert count.router == (0, 0)
    assert count.experts == (2 * 3 * 24 * 32, 2 * 3 * 24 * 32)
    assert count.active == count.total


def test_without_summaries_nothing_is_counted_for_them():
    assert accounting.count_parameters(tiny.VARIANTS["local only"]).summaries == (0, 0)
    assert accounting.forward_flops(tiny.VARIANTS["local only"], position=63).summaries == 0


@pytest.mark.parametrize("name", tiny.VARIANTS)
def test_cache_is_the_one_that_the_model_makes(name):
    spec = tiny.VARIANTS[name]
    cache = jax.eval_shape(lambda: model_lib.empty_cache(spec, batch_size=1, max_length=64)).layers
    size = sum(leaf.size for leaf in jax.tree.leaves(cache))
    assert accounting.cache_bytes(spec, bytes_per_element=2) == 2 * size


def test_cache_by_hand():
    # Keys and values of 2 heads of 8 in 2 layers; one block of 4, and 2 summaries of 16 blocks.
    assert accounting.cache_bytes(tiny.SPARSE, bytes_per_element=2) == 2 * 2 * 16 * (4 + 32) * 2
    assert accounting.cache_bytes(FULL, bytes_per_element=4) == 2 * 2 * 16 * 64 * 4


def test_operations_by_hand():
    # Matrices: twice the active parameters but norms (152) and summaries (112) = 10800 * 2.
    # Position 9 is the second of block 2: it sees 2 tokens and 2 * 2 summaries, with 4 heads
    # of 8, for scores and for values, in 2 layers.
    # Summaries: of each key 3 products of width 8 with 2 summaries in 2 heads, in 2 layers.
    flops = accounting.forward_flops(tiny.SPARSE, position=9)
    assert flops == (21600, 2 * 2 * 2 * 32 * 6, 2 * 2 * 3 * 2 * 2 * 8)
    assert flops.total == sum(flops)
    # Full attention sees all 10 tokens, and has nothing to compress.
    assert accounting.forward_flops(FULL, position=9)[1:] == (2 * 2 * 2 * 32 * 10, 0)
    # Block borders: the last token of a block sees 4 tokens, the next one itself and 2 summaries.
    seen = [accounting.forward_flops(tiny.SPARSE, position=p).attention / 256 for p in (0, 3, 4)]
    assert seen == [1, 4, 3]


@pytest.mark.parametrize("spec", [tiny.SPARSE, tiny.DENSE, FULL, tiny.VARIANTS["local only"]])
@hypothesis.given(st.integers(1, 64))
def test_the_mean_is_that_of_the_positions(spec, length):
    mean = accounting.mean_forward_flops(spec, length=length)
    each = [accounting.forward_flops(spec, position=position) for position in range(length)]
    for kind, kinds in zip(mean, zip(*each, strict=True), strict=True):
        assert math.isclose(kind, sum(kinds) / length, rel_tol=1e-12)


def test_training_is_three_passes_and_rematerialisation_one_more_of_the_layers():
    spec = dataclasses.replace(tiny.SPARSE, remat="block")
    forward = accounting.mean_forward_flops(spec, length=20).total
    assert accounting.training_flops(spec, length=20) == 3 * forward
    assert accounting.recomputed_flops(spec, length=20) == forward - 2 * 24 * 50
    assert accounting.recomputed_flops(tiny.SPARSE, length=20) == 0


def test_recomputing_experts_is_two_of_their_three_products():
    spec = dataclasses.replace(tiny.SPARSE, expert_kernel="auto", remat="experts")
    # 2 layers, K 2, two matrices of 24 x 16, two operations each
    assert accounting.recomputed_flops(spec, length=20) == 2 * 2 * 2 * 24 * 16 * 2


@pytest.mark.parametrize("remat", ["none", "experts"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_experts_keep_is_what_jax_keeps(remat, dtype):
    spec = tiny.SPARSE
    inner = (spec.num_experts, spec.model_dim, spec.expert_hidden_dim)
    layer = moe.grouped(backend="loop", recompute=remat == "experts")

    def kept(num_tokens):
        ids = jnp.zeros((num_tokens, spec.top_k), jnp.int32)
        shapes = [(num_tokens, spec.model_dim), inner, inner, (inner[0], inner[2], inner[1])]
        arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        shares = jax.ShapeDtypeStruct(ids.shape, jnp.float32)

        def pull(shares, *arrays):
            def answer(shares, tokens, *weights):
                routing = Routing(ids, shares)
                mask = jnp.ones(num_tokens, bool)
                return layer(tokens, mask, routing, experts.ExpertWeights(*weights)).x

            return jax.vjp(answer, shares, *arrays)[1]

        return sum(
            x.size * x.dtype.itemsize
            for x in jax.tree.leaves(jax.eval_shape(pull, shares, *arrays))
        )

    counted = accounting.kept_by_experts(
        spec, remat=remat, bytes_per_element=jnp.dtype(dtype).itemsize
    )
    # What is not of tokens, the matrices and the sizes of groups, is in both.
    assert kept(24) - kept(14) == 10 * counted


def test_a_recomputed_block_keeps_nothing_of_its_experts():
    assert accounting.kept_by_experts(tiny.SPARSE, remat="block", bytes_per_element=2) == 0


def multiplied(jaxpr) -> int:
    """Operations of all matrix products of a program, those of loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += times * multiplied(inner)
    return total


@pytest.mark.parametrize("name", ["dense", "sparse", "untied"])
def test_operations_are_those_of_the_program(name):
    # One block: its queries multiply with all of its 4 keys and with 2 (unseen) summaries, which
    # is what position 4 * 1 + 3 needs. Capacity 1.0 gives each assignment one row.
    untied = dataclasses.replace(PACKED, tie_embeddings=False, num_shared_experts=1)
    spec = {"dense": tiny.DENSE, "sparse": PACKED, "untied": untied}[name]
    model = model_lib.Decoder(spec)
    tokens, context = tiny.rows(batch_size=1, length=4)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, **context))
    program = jax.make_jaxpr(lambda v: model.apply(v, tokens, **context))(variables)
    needed = 4 * accounting.forward_flops(spec, position=7).total
    assert multiplied(program.jaxpr) == needed
