"""What the scale benchmark counts, by hand and against the code that it stands for."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console

from benchmarks import (
    exchange_load,
    expert_parallel_scale,
    expert_parallel_tables,
    interconnect,
)
from deepseek_jax.core import mesh_spec
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.parallel import exchange
from tests import tolerances
from tests.training import tiny

MODELS = expert_parallel_scale.models()
SMALL = ModelSpec(
    **(
        tiny.MODEL
        | {"num_experts": 32, "num_groups": 8, "top_groups": 4, "top_k": 4, "model_dim": 16}
    )
)


def draw(model, *, num_tokens, zipf=0.0, seed=1):
    return exchange_load.draw(model, zipf=zipf, num_tokens=num_tokens, seed=seed)


@pytest.mark.parametrize("num_devices", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("top_groups", [1, 2, 4, 8])
@pytest.mark.deep
def test_draws_visit_as_many_devices_as_expected(num_devices, top_groups):
    model = dataclasses.replace(SMALL, top_groups=top_groups)
    ids = draw(model, num_tokens=4000)
    counts = [len(set(row)) for row in (ids // (32 // num_devices)).tolist()]
    found = exchange_load.measure(ids[None], model, num_devices=num_devices, factors=())
    assert found.visits == pytest.approx(np.mean(counts))
    # Five standard errors of the difference of two means, each of at least 4,000 tokens.
    error = 5 * np.std(counts) * math.sqrt(2 / 4000)
    expected = exchange.expected_visits(model, num_devices=num_devices)
    assert abs(found.visits - expected) <= error + 1e-12


def test_draws_follow_the_kind_of_score():
    softmax, sigmoid = (
        exchange_load.random_scores(
            dataclasses.replace(SMALL, router_scores=kind), zipf=1.0, num_tokens=50, seed=1
        )
        for kind in ("softmax", "sigmoid")
    )
    logits = np.log(sigmoid / (1 - sigmoid))
    np.testing.assert_allclose(
        softmax, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), **tolerances.LAYER_F32
    )


@pytest.mark.parametrize("zipf", [0.0, 1.0])
def test_draws_are_distinct_and_in_few_groups(zipf):
    ids = draw(SMALL, num_tokens=200, zipf=zipf)
    assert all(len(set(row)) == 4 for row in ids.tolist())
    assert max(len(set(row)) for row in (ids // 4).tolist()) == 4
    one = dataclasses.replace(SMALL, top_groups=1)
    assert all(len(set(row)) == 1 for row in (draw(one, num_tokens=200) // 4).tolist())


def test_a_liked_expert_is_drawn_as_often_as_the_normal_distribution_says():
    # Two experts, top-1: the first in rank has ln 2 more, and the difference of two standard
    # normals a deviation of sqrt(2), so that it wins with the chance Phi(ln 2 / sqrt(2)) = 0.688.
    two = dataclasses.replace(SMALL, num_experts=2, num_groups=1, top_groups=1, top_k=1)
    ids = draw(two, num_tokens=20_000, zipf=1.0)
    chance = 0.5 * (1 + math.erf(math.log(2) / 2))
    assert chance == pytest.approx(0.688, abs=1e-3)
    shares = np.bincount(ids[:, 0], minlength=2) / len(ids)
    assert abs(shares.max() - chance) < 5 * math.sqrt(chance * (1 - chance) / len(ids))


def test_ranks_are_dealt_to_ids_by_the_seed():
    one = dataclasses.replace(SMALL, num_groups=1, top_groups=1, top_k=1)
    most = set()
    for seed in range(6):
        loads = np.bincount(draw(one, num_tokens=4000, zipf=3.0, seed=seed)[:, 0], minlength=32)
        # Rank 1 has 3 ln 2 = 2.1 deviations more than rank 2.
        assert loads.max() > 0.6 * 4000
        most.add(int(loads.argmax()))
    assert len(most) > 1


@pytest.mark.parametrize("factor", [1.0, 1.25])
@pytest.mark.deep
def test_counts_are_those_of_the_exchange(factor):
    ids = draw(SMALL, num_tokens=128, zipf=1.0)
    found = exchange_load.measure(
        exchange_load.cut_to_sources(ids, 64), SMALL, num_devices=8, factors=(factor,)
    )
    mesh = MeshSpec(data=1, expert=8, model=1, exchange="bounded", rows_factor=factor)
    made = [
        exchange.make(
            jnp.asarray(part),
            jnp.ones(64, bool),
            num_devices=8,
            experts_per_device=4,
            capacity=exchange.rows_per_destination(mesh, SMALL, num_tokens=64),
        )
        for part in (ids[:64], ids[64:])
    ]
    visits = sum(int(plan.num_visits) for plan in made)
    overflowed = sum(int(plan.num_overflowed) for plan in made)
    assert overflowed > 0
    assert found.visits == pytest.approx(visits / 128)
    assert found.overflow[factor] == pytest.approx(overflowed / visits)


def test_unevenness_by_hand():
    model = dataclasses.replace(SMALL, top_k=1)
    # Four devices of 8 experts; both sources send 3 of 4 rows to the first, the others differ.
    ids = np.array([[[0], [1], [2], [31]], [[0], [1], [2], [8]]], np.int32)
    found = exchange_load.measure(ids, model, num_devices=4, factors=())
    assert found.visits == 1.0
    assert found.uneven_sent == 3.0  # 3 rows over the mean of 4 / 4
    assert found.uneven_received == 3.0  # 6 rows over the mean of 8 / 4


def test_bytes_by_hand():
    model = MODELS["r1_12b"]
    found = expert_parallel_scale.forward_bytes(model, 128, num_tokens=4096)
    row = 1024 * 2
    # One expert a device: a row for each of 4 experts, of which 1 in 128 stays at home.
    assert found["once"] == found["by_expert"] == 2 * 4 * row * 127 / 128
    assert found["all_gather"] == 2 * 127 * row
    # 1.25 of 4 rows, each with 4 ids and 4 weights of 4 bytes; exact sends a row to each device.
    assert found["sent"] == (2 * 5 * row + 5 * 32) * 127 / 128
    assert found["exact"] == 127 * (2 * row + 32)


def test_backward_bytes_are_those_of_the_transposed_program():
    model = MODELS["r1_12b"]
    (record,) = (
        found
        for found in expert_parallel_scale.bytes_by_devices(model, num_tokens=4096)
        if found["devices"] == 128
    )
    # Rows five times (there, again for remat, and back; two gradients), ids twice, weights thrice.
    rows = 5 * 5 * 2048
    ids, weights = 5 * 2 * 16, 5 * 3 * 16
    assert record["forward_and_backward"] == (rows + ids + weights) * 127 / 128


def test_flops_by_hand():
    # Three matrices of each of 4 experts and the gate; forward, twice backward, once again.
    active = 4 * 3 * 1024 * 1792 + 1024 * 128
    assert interconnect.layer_flops(MODELS["r1_12b"]) == 2 * 4 * active


def test_a_row_once_a_machine_by_hand():
    # Any group may be chosen from, so all sets of 4 of 128 experts are equally likely. One of the
    # 8 machines has 16 experts and is left out if all 4 are among the other 112; one of the 64
    # devices has 2.
    model = dataclasses.replace(MODELS["r1_12b"], top_groups=8)
    nodes = 8 * (1 - math.comb(112, 4) / math.comb(128, 4))
    devices = 64 * (1 - math.comb(126, 4) / math.comb(128, 4))
    (record,) = (r for r in expert_parallel_scale.bytes_by_node(model) if r["devices"] == 64)
    assert record["nodes_visited"] == pytest.approx(nodes)
    assert record["bytes_once_a_node"] == pytest.approx(2 * 2048 * nodes * 56 / 64)
    assert record["bytes_once_a_device"] == pytest.approx(2 * 2048 * devices * 56 / 64)
    assert record["saved"] == pytest.approx(1 - nodes / devices)


def test_a_row_once_a_machine_under_a_limit_of_groups():
    # Where a machine has one group, 4 open groups are at most 4 machines; drawn independently of
    # what `expected_visits` draws.
    model = MODELS["r1_12b"]
    counts = [len(set(row)) for row in (draw(model, num_tokens=8192) // 16).tolist()]
    assert max(counts) == 4
    (record,) = (r for r in expert_parallel_scale.bytes_by_node(model) if r["devices"] == 64)
    assert record["groups_a_node"] == 1.0
    error = 5 * np.std(counts) * math.sqrt(2 / 8192)
    assert abs(record["nodes_visited"] - np.mean(counts)) < error


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_devices", expert_parallel_scale.DEVICES)
def test_the_meshes_fit(name, num_devices):
    mesh = expert_parallel_scale.mesh_for(MODELS[name], num_devices, rows_factor=1.25)
    assert mesh.num_devices == num_devices
    mesh_spec.check_fit(mesh, MODELS[name], num_rows=num_devices)


def test_the_cut_of_a_v5e_pod_is_the_vendors():
    # 1.6 TB/s of bisection: half of 256 chips send half of V over it.
    seconds = 128 * 0.5 / 1.6e12
    assert interconnect.V5E.cut(256, 256) / interconnect.V5E.link_bytes == pytest.approx(seconds)
    # 1,200 GB/s both ways over the 6 links of a v5p chip.
    assert 2 * 6 * interconnect.V5P.link_bytes == pytest.approx(1200e9)


@pytest.mark.parametrize(
    ("torus", "group_size", "num_chips", "cut"),
    [
        (interconnect.V5E, 8, 8, 1.0),  # 2x4, lines: 4 / 4
        (interconnect.V5E, 128, 256, 2.0),  # 8x16 in 16x16: the line of 8 and the ring of 16
        (interconnect.V5E, 64, 256, 2.0),  # 8x8 in 16x16, lines of 8
        (interconnect.V5P, 8, 8, 0.5),  # 2x2x2, lines
        (interconnect.V5P, 64, 64, 0.5),  # 4x4x4, rings
        (interconnect.V5P, 128, 512, 1.0),  # 8x8x2 in 8x8x8: rings of 8, a line of 2
    ],
)
def test_cuts_by_hand(torus, group_size, num_chips, cut):
    assert torus.cut(group_size, num_chips) == cut


def test_no_infiniband_within_a_machine():
    model, machine = MODELS["r1_12b"], interconnect.MACHINES[0]
    mesh = expert_parallel_scale.mesh_for(model, 8, rows_factor=1.25)
    wires = interconnect.seconds(machine, mesh, interconnect.LayerBytes(8e9, 0.0))
    assert wires == {"NVLink": 7e9 / 450e9, "InfiniBand": 0.0}
    wires = interconnect.seconds(
        machine,
        expert_parallel_scale.mesh_for(model, 32, rows_factor=1.25),
        interconnect.LayerBytes(32e9, 0.0),
    )
    assert wires == pytest.approx({"NVLink": 7e9 / 450e9, "InfiniBand": 24e9 / 50e9})


SOFTMAX = dataclasses.replace(
    SMALL,
    router_scores="softmax",
    balance="loss",
    load_balance_weight=0.1,
    bias_update_rate=0.0,
)


def routed(model, *, num_tokens, seeds):
    """What `route_heldout` would find in a router of random scores, one seed a layer."""
    probs = np.stack(
        [
            exchange_load.random_scores(model, zipf=0.0, num_tokens=num_tokens, seed=seed)
            for seed in seeds
        ]
    )
    ids = np.stack(
        [exchange_load.choose(layer, model, top_groups=model.top_groups) for layer in probs]
    )
    return exchange_load.HeldoutRouting("run", model, 7, ids, probs)


def test_a_run_is_looked_at_layer_by_layer(monkeypatch):
    monkeypatch.setattr(expert_parallel_scale, "TRAINED_TOKENS", (64,))
    run = routed(SOFTMAX, num_tokens=256, seeds=(1, 2))
    found = expert_parallel_scale.loads_of_run(run)
    assert {record["router"] for record in found["loads"]} == {"layer 0", "layer 1", "random"}
    # 3 routers, each with 1, 2, 4 and 8 groups; their own 4 are what the run chose.
    assert len(found["by_groups"]) == 12
    own = {r["router"]: r["visits"] for r in found["by_groups"] if r["top_groups"] == 4}
    for record in found["loads"]:
        visits = own[record["router"]][record["devices"]]
        assert record["visits"] == pytest.approx(visits)
        assert 1.0 < visits <= 4.0
    # One expert a device: every choice is a device, whatever the limit.
    assert {record["visits"][32] for record in found["by_groups"]} == {4.0}


def test_fewer_groups_are_fewer_devices():
    found = expert_parallel_scale.loads_of_run(routed(SOFTMAX, num_tokens=300, seeds=(1,)))
    assert {record["tokens"] for record in found["loads"]} == {256}  # the others are too many
    for router in ("layer 0", "random"):
        by_groups = {
            record["top_groups"]: record["visits"][8]
            for record in found["by_groups"]
            if record["router"] == router
        }
        # A device has one of the 8 groups.
        assert by_groups[1] == 1.0 < by_groups[2] <= 2.0 < by_groups[4] <= by_groups[8]


def test_limits_that_the_model_cannot_have_are_left_out():
    # 4 groups of 4: one group has too few experts for top-8, and there are no 8 groups.
    model = dataclasses.replace(SOFTMAX, num_experts=16, num_groups=4, top_groups=2, top_k=8)
    scores = exchange_load.random_scores(model, zipf=0.0, num_tokens=64, seed=1)
    records = expert_parallel_scale.visits_by_groups(scores, model, [4])
    assert [record["top_groups"] for record in records] == [2, 4]


def test_a_choice_bias_leaves_other_limits_out(capsys):
    model = dataclasses.replace(
        SMALL, balance="bias", load_balance_weight=0.0, bias_update_rate=0.1
    )
    found = expert_parallel_scale.loads_of_run(routed(model, num_tokens=256, seeds=(1,)))
    assert found["by_groups"] == []
    expert_parallel_tables.show_trained(rich_console.Console(width=170), found)
    assert "choice bias is no score" in capsys.readouterr().out


@pytest.mark.deep
def test_without_a_run_it_says_what_is_left_out(tmp_path, capsys):
    out = tmp_path / "scale.json"
    expert_parallel_scale.main(None, 256, 0.4, out)
    assert "left out: no --workdir" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert set(figures["models"]) == {"r1_12b", "V3-like"} and "trained" not in figures
