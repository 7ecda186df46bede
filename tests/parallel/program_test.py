"""What the parser reads from a program's text, and what compiled expert parallelism sends."""

import collections
import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from deepseek_jax.nn import feed_forward
from deepseek_jax.parallel import exchange, program, rules
from tests import tiny
from tests.parallel import layers


def in_entry(*lines):
    """A program whose entry computation has these instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\nENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


LOOP = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: f32[4]) -> f32[4] {
  ROOT %ar = f32[4]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}

%outer (p: f32[4]) -> f32[4] {
  %ag = f32[8]{0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}
  ROOT %w = f32[4] while(%p), condition=%always, body=%inner, TRIPS
}

%always (p: f32[4]) -> pred[] {
  ROOT %yes = pred[] constant(true)
}

%unused (p: f32[4]) -> f32[4] {
  ROOT %never = f32[4]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main.1 (p: f32[4]) -> f32[4] {
  %c = f32[4] call(%p), to_apply=%inner
  ROOT %w = f32[4] while(%c), condition=%always, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,2,4},{1,3,5}}", 3),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['data'=2,'expert'=4,'model'=3] {'data','expert'}", 8),
        ("replica_groups={}", 0),
    ],
)
def test_groups_are_read_in_every_notation(groups, size):
    line = f"%ar = f32[4]{{0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%add"
    (found,) = program.collectives(in_entry(line))
    assert found == program.Collective("all-reduce", ("f32[4]",), 16, size, 1, "")


def test_groups_of_one_device_send_nothing():
    line = "%ar = f32[4]{0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add"
    assert program.collectives(in_entry(line)) == []


@pytest.mark.parametrize(
    ("shape", "kind", "shapes", "num_bytes"),
    [
        ("(f32[2,3]{1,0}, s8[5]{0})", "all-to-all", ("f32[2,3]", "s8[5]"), 24 + 5),
        ("bf16[2,3]{1,0:T(8,128)}", "reduce-scatter", ("bf16[2,3]",), 12),
        ("pred[7]{0}", "collective-broadcast", ("pred[7]",), 7),
        ("s32[]", "all-reduce", ("s32[]",), 4),
        # Started and awaited apart: operands and results stand there, of a sum results only.
        ("(f32[4]{0}, f32[8]{0})", "all-gather-start", ("f32[8]",), 32),
        (
            "((f32[4]{0}, s32[1]{0}), (f32[8]{0}, s32[2]{0}))",
            "all-gather-start",
            ("f32[8]", "s32[2]"),
            40,
        ),
        ("(f32[4]{0}, f32[8]{0})", "all-reduce-start", ("f32[4]", "f32[8]"), 48),
        ("(f32[4]{0}, f32[4]{0}, u32[], u32[])", "collective-permute-start", ("f32[4]",), 16),
    ],
)
def test_bytes_are_those_of_the_results(shape, kind, shapes, num_bytes):
    done = f"%d = f32[8]{{0}} {kind.removesuffix('-start')}-done(%c)"
    scope = 'metadata={op_name="jit(f)/there/all_to_all" source_file="x.py"}'
    (found,) = program.collectives(
        in_entry(f"%c = {shape} {kind}(%p), replica_groups=[1,2]<=[2], {scope}", done)
    )
    kind = kind.removesuffix("-start")
    assert found == program.Collective(kind, shapes, num_bytes, 2, 1, "jit(f)/there/all_to_all")


def test_loops_multiply_and_what_is_not_called_does_not_run():
    text = LOOP.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"5"}}')
    runs = {one.kind: one.num_runs for one in program.collectives(text)}
    # the sum: once in the call, 5 times in each of 3 trips
    assert runs == {"all-reduce": 1 + 3 * 5, "all-gather": 3}


def test_both_branches_of_a_condition_count():
    sums = LOOP.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"5"}}')
    start = sums.index("ENTRY")
    entry = (
        "ENTRY %main (p: f32[4]) -> f32[4] {\n"
        "  %a = f32[4] conditional(%i, %p, %p), branch_computations={%inner, %unused}\n"
        "  %b = f32[4] conditional(%i, %p, %p), true_computation=%inner, false_computation=%unused"
        "\n}\n"
    )
    found = program.collectives(sums[:start] + entry)
    assert [one.num_runs for one in found] == [2, 2]


def test_a_loop_without_a_known_end_is_an_error_if_it_sends():
    with pytest.raises(ValueError, match="a loop without a known end: .* all-reduce"):
        program.collectives(LOOP.replace("TRIPS", "metadata={}"))
    # `always` is called by it too, but sends nothing
    silent = LOOP.replace("TRIPS", "metadata={}").replace(" all-reduce(", " negate(")
    assert [one.num_runs for one in program.collectives(silent)] == [3]


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="it has no computations"):
        program.collectives("module @jit_f attributes {}")
    with pytest.raises(ValueError, match="it has no ENTRY computation"):
        program.collectives("%f (p: f32[4]) -> f32[4] {\n}\n")


def sent_by(text):
    """Transfers by kind, dtype, elements that a device holds afterwards, and group size.

    The parts of an all-to-all, one a device, are one transfer; others are told apart even where
    the compiler combines them.
    """
    found = collections.Counter()
    for one in program.collectives(text):
        sizes = [math.prod(map(int, re.findall(r"\d+", s.partition("[")[2]))) for s in one.shapes]
        dtypes = {shape.partition("[")[0] for shape in one.shapes}
        assert one.num_bytes == 4 * sum(sizes) and dtypes <= {"f32", "s32"}  # all are 4 bytes
        if one.kind == "all-to-all":
            assert len(sizes) in (1, one.group_size)
            found[one.kind, *dtypes, sum(sizes), one.group_size] += one.num_runs
            continue
        for shape, size in zip(one.shapes, sizes, strict=True):
            found[one.kind, shape.partition("[")[0], size, one.group_size] += one.num_runs
    return found


def exchanged(num_devices, capacity, *, top_k, model_dim):
    """The exchange of rows, forward and backward: P devices, C rows a destination."""
    rows = num_devices * capacity
    return {
        ("all-to-all", "f32", rows * model_dim, num_devices): 2 + 2,  # there, back; gradients
        ("all-to-all", "s32", rows * top_k, num_devices): 1,  # expert ids
        ("all-to-all", "f32", rows * top_k, num_devices): 1 + 1,  # routing weights; gradient
    }


def stages(text):
    """How many all-to-alls stand in each stage, forward and (True) backward."""
    found = [one for one in program.collectives(text) if one.kind == "all-to-all"]
    where = [(re.search("/(there|experts|back)/", one.scope), one.scope) for one in found]
    return collections.Counter((stage[1], "transpose(" in scope) for stage, scope in where)


def compiled_layer(sizes, *, capacity):
    """The text of experts' answers and gradients, everything lying where the rules put it."""
    mesh = layers.layout(sizes).mesh
    rows = rules.sharding(mesh, "batch")
    enter = rules.sharding(mesh, "experts", "expert_embed", "expert_hidden")
    leave = rules.sharding(mesh, "experts", "expert_hidden", "expert_embed")
    weights = layers.ExpertWeights(enter, enter, leave)
    placed = layers.Case(rows, rows, layers.Routing(rows, rows), weights, rows)
    run = layers.with_gradients(layers.on_mesh(sizes, capacity=capacity))
    return jax.jit(run, in_shardings=(placed,)).lower(layers.case()).compile().as_text()


def test_experts_send_rows_there_and_back_and_nothing_else():
    # 4 tokens a device, 2 rows a destination: 8 destinations x 2 rows x 8 numbers
    text = compiled_layer((1, 8, 1), capacity=2)
    dims = {"top_k": layers.TOP_K, "model_dim": layers.MODEL_DIM}
    counts = {("all-reduce", "s32", 1, 8): 3}
    assert sent_by(text) == exchanged(8, 2, **dims) | counts
    assert stages(text) == {
        ("there", False): 3,
        ("back", False): 1,
        ("back", True): 1,
        ("there", True): 2,
    }


@pytest.mark.deep
def test_experts_cut_over_data_are_gathered_and_their_gradients_scattered():
    text = compiled_layer((2, 4, 1), capacity=2)
    dims = {"top_k": layers.TOP_K, "model_dim": layers.MODEL_DIM}
    matrix = 2 * layers.MODEL_DIM * layers.HIDDEN_DIM  # of the device's two experts
    assert sent_by(text) == exchanged(4, 2, **dims) | {
        ("all-gather", "f32", matrix, 2): 3,
        ("reduce-scatter", "f32", matrix // 2, 2): 3,
        ("all-reduce", "s32", 1, 8): 3,
    }


def compiled_feed_forward(sizes):
    """Loss, statistics and gradients of a routed layer with 4 tokens a device, and its C."""
    exact = layers.layout(sizes)
    bounded = dataclasses.replace(exact.spec, exchange="bounded", rows_factor=1.5)
    layout = dataclasses.replace(exact, spec=bounded)
    spec = tiny.SPARSE
    layer = feed_forward.SparseFeedForward(spec, layout)
    x, mask = jnp.ones((8, 4, spec.model_dim)), jnp.ones((8, 4), bool)
    boxed = jax.eval_shape(lambda key: layer.init(key, x, mask)["params"], jax.random.key(0))
    placed = jax.tree.map(
        lambda names: rules.sharding(layout.mesh, *names),
        nn.get_partition_spec(boxed),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    rows = rules.sharding(layout.mesh, "batch")

    def loss(params, x, d_x, mask):
        output = layer.apply({"params": params}, x, mask)
        return jnp.vdot(output.x, d_x) + output.aux_loss, output.stats

    run = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
        in_shardings=(placed, rows, rows, rows),
        out_shardings=(rules.sharding(layout.mesh), (placed, rows)),
    )
    text = run.lower(nn.unbox(boxed), x, x, mask).compile().as_text()
    return text, exchange.rows_per_destination(bounded, spec, num_tokens=4)


ROUTER = {  # everything that a layer with its router sends beside the exchange
    ("all-gather", "f32", 24 * 8, 8): 1,  # the router's matrix [D, E]
    ("all-reduce", "f32", 24 * 8, 8): 1,  # its gradient
    # Of each expert: probabilities; load, once for the loss and once for the statistics.
    ("all-reduce", "f32", 8, 8): 3,
    # Answers, z-loss, entropy; real tokens, for both losses and for the statistics.
    ("all-reduce", "f32", 1, 8): 6,
    ("all-reduce", "s32", 1, 8): 3,  # dropped, visits, overflowed
}


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 4, 1)], ids=str)
@pytest.mark.deep
def test_a_routed_layer_sends_rows_and_what_its_router_sums(sizes):
    text, capacity = compiled_feed_forward(sizes)
    spec, (data, expert, _) = tiny.SPARSE, sizes
    expected = ROUTER | exchanged(expert, capacity, top_k=spec.top_k, model_dim=spec.model_dim)
    if data > 1:
        matrix = spec.num_experts // expert * spec.model_dim * spec.expert_hidden_dim
        expected |= {
            ("all-gather", "f32", matrix, data): 3,
            ("reduce-scatter", "f32", matrix // data, data): 3,
        }
    assert capacity < 4  # bounded: fewer rows than tokens
    assert sent_by(text) == expected


def test_types_with_letters_behind_their_bits_are_counted():
    line = "  %a = f8e4m3fn[8,4]{1,0} all-to-all(%x), replica_groups={{0,1}}"
    text = f"ENTRY %main (x: f8e4m3fn[8,4]) -> f8e4m3fn[8,4] {{\n{line}\n}}\n"
    (one,) = program.collectives(text)
    assert (one.shapes, one.num_bytes) == (("f8e4m3fn[8,4]",), 32)
    with pytest.raises(ValueError, match="a collective of an unknown type: opaque"):
        program.collectives(text.replace("f8e4m3fn", "opaque"))
