"""Every rule of MeshSpec, what fits a mesh, and the words for what does not."""

import dataclasses
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import pytest

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.mesh_spec import MeshSpec
from tests import tiny
from tests.core import rules

EXACT = MeshSpec(data=2, expert=4, model=1, exchange="exact", rows_factor=0.0)
BOUNDED = dataclasses.replace(EXACT, exchange="bounded", rows_factor=1.5)
BROKEN = [  # base, changes, what the message starts with
    (EXACT, {"data": 0}, "mesh.data=0: must be at least 1"),
    (EXACT, {"expert": 0}, "mesh.expert=0: must be at least 1"),
    (EXACT, {"model": -1}, "mesh.model=-1: must be at least 1"),
    (BOUNDED, {"rows_factor": 0.99}, "mesh.rows_factor=0.99: must be at least 1"),
    (EXACT, {"rows_factor": 1.0}, 'mesh.rows_factor=1.0: must be 0.0 when mesh.exchange="exact"'),
]


def sized(data, expert, model):
    return dataclasses.replace(EXACT, data=data, expert=expert, model=model)


def broken_line(base, changes, message):
    return rules.line_of_broken_rule(
        mesh_spec, lambda: dataclasses.replace(base, **changes), message
    )


@pytest.mark.parametrize(("base", "changes", "message"), BROKEN, ids=[case[2] for case in BROKEN])
def test_a_broken_rule_names_key_value_and_what_is_allowed(base, changes, message):
    broken_line(base, changes, message)


def test_every_rule_has_an_example():
    assert {broken_line(*case) for case in BROKEN} == rules.lines_of_rules(mesh_spec)


def test_derived_values():
    mesh = dataclasses.replace(BOUNDED, model=3)
    assert str(mesh) == "2x4x3"
    assert mesh.sizes == {"data": 2, "expert": 4, "model": 3}
    assert (mesh.num_devices, mesh.num_row_shards) == (24, 8)
    assert mesh.exact() == sized(2, 4, 3)
    assert mesh_spec.ONE_DEVICE.num_devices == 1


ROWS = "the rows computed at once (train.batch_size / train.num_microbatches)"
GROUPS = "so that no device has parts of two groups"
# mesh, changes of the model, rows, all misfits. The model has 8 experts in 4 groups, 24 columns,
# 2 key/value heads, experts of width 16 and 50 tokens.
MISFITS = [
    ((1, 2, 2), {}, 4, []),
    ((1, 8, 1), {}, 8, []),  # two devices of each group
    (
        (1, 16, 1),
        {"model_dim": 32},
        16,
        ["mesh.expert=16: must be a divisor of model.num_experts=8"],
    ),
    (  # experts 0 1 | 2 3 of groups 0 1 2 | 3 4 5
        (1, 6, 1),
        {"num_experts": 12},
        6,
        [f"mesh.expert=6: must divide model.num_groups=4 or be a multiple of it, {GROUPS}"],
    ),
    ((2, 2, 1), {}, 6, [f"mesh.data * mesh.expert=4: must be a divisor of {ROWS}=6"]),
    ((5, 1, 1), {}, 5, ["mesh.data * mesh.expert=5: must be a divisor of model.model_dim=24"]),
    (
        (1, 1, 4),
        {"vocab_size": 48},
        1,
        ["mesh.model=4: must be a divisor of model.num_kv_heads=2"],
    ),
    (
        (1, 1, 2),
        {"expert_hidden_dim": 15},
        1,
        ["mesh.model=2: must be a divisor of model.expert_hidden_dim=15"],
    ),
    ((1, 1, 2), {"vocab_size": 49}, 1, ["mesh.model=2: must be a divisor of model.vocab_size=49"]),
    (
        (4, 1, 3),
        {},
        2,
        [
            f"mesh.data * mesh.expert=4: must be a divisor of {ROWS}=2",
            "mesh.model=3: must be a divisor of model.num_kv_heads=2",
            "mesh.model=3: must be a divisor of model.expert_hidden_dim=16",
            "mesh.model=3: must be a divisor of model.vocab_size=50",
        ],
    ),
]


@pytest.mark.parametrize(("sizes", "changes", "num_rows", "wrong"), MISFITS, ids=str)
def test_every_misfit_is_named(sizes, changes, num_rows, wrong):
    model = dataclasses.replace(tiny.SPARSE, **changes)
    assert mesh_spec.misfits(sized(*sizes), model, num_rows=num_rows) == wrong


def test_a_dense_model_has_no_experts_to_spread():
    wrong = mesh_spec.misfits(sized(1, 2, 1), tiny.DENSE, num_rows=2)
    assert wrong == ["mesh.expert=2: must be 1 in a dense model (model.num_experts=1)"]
    assert mesh_spec.misfits(sized(4, 1, 2), tiny.DENSE, num_rows=4) == []


def test_what_does_not_fit_is_refused_with_the_nearest_that_does():
    mesh_spec.check_fit(sized(1, 4, 2), tiny.SPARSE, num_rows=4)
    # 4 rows: data * expert is 1, 2 or 4, so 8 devices need two along model
    with pytest.raises(ValueError) as error:
        mesh_spec.check_fit(sized(1, 8, 1), tiny.SPARSE, num_rows=4)
    assert str(error.value) == (
        f"mesh.data * mesh.expert=8: must be a divisor of {ROWS}=4. "
        "Nearest that fit 8 devices (data x expert x model): 1x4x2, 2x2x2, 4x1x2"
    )


def test_all_misfits_stand_in_one_message():
    with pytest.raises(ValueError) as error:
        mesh_spec.check_fit(sized(1, 8, 4), tiny.SPARSE, num_rows=4)
    assert str(error.value) == (
        f"mesh.data * mesh.expert=8: must be a divisor of {ROWS}=4; "
        "mesh.model=4: must be a divisor of model.num_kv_heads=2; "
        "mesh.model=4: must be a divisor of model.vocab_size=50. "
        "None fits 32 devices; nearest (data x expert x model): 1x4x2 (8 devices), "
        # with 4 devices, 1x2x2 and 1x4x1 are a factor of 8 away from 1x8x4
        "2x2x2 (8 devices), 4x1x2 (8 devices), 1x2x2 (4 devices)"
    )


def test_too_few_devices_are_refused():
    mesh, model = sized(1, 4, 2), tiny.SPARSE
    with pytest.raises(ValueError) as error:
        mesh_spec.check_devices(mesh, model, num_rows=4, num_devices=2, use_all=False)
    assert str(error.value) == (
        "mesh.data=1, mesh.expert=4, mesh.model=2 needs 8 devices, there are 2. "
        "Nearest that fit 2 devices (data x expert x model): 1x1x2, 1x2x1, 2x1x1"
    )
    mesh_spec.check_devices(mesh, model, num_rows=4, num_devices=8, use_all=True)


def test_idle_devices_are_refused_only_where_all_must_be_used():
    mesh, model = sized(1, 4, 1), tiny.SPARSE
    mesh_spec.check_devices(mesh, model, num_rows=4, num_devices=8, use_all=False)
    with pytest.raises(ValueError) as error:
        mesh_spec.check_devices(mesh, model, num_rows=4, num_devices=8, use_all=True)
    assert str(error.value) == (
        "mesh.data=1, mesh.expert=4, mesh.model=1 needs 4 devices, there are 8. "
        "Nearest that fit 8 devices (data x expert x model): 1x4x2, 2x2x2, 4x1x2"
    )


@hypothesis.given(
    st.tuples(*[st.integers(1, 16)] * 3),
    st.sampled_from([1, 4, 6, 8]),
    st.integers(1, 16),
    st.sampled_from([tiny.SPARSE, tiny.DENSE, dataclasses.replace(tiny.SPARSE, num_experts=12)]),
)
def test_fitting_meshes_are_all_that_fit_and_the_nearest_come_first(
    sizes, num_rows, num_devices, model
):
    mesh = dataclasses.replace(BOUNDED, **dict(zip(EXACT.sizes, sizes, strict=True)))
    found = mesh_spec.fitting_meshes(mesh, model, num_rows=num_rows, num_devices=num_devices)
    limits = (num_rows, model.num_experts, model.num_kv_heads)
    every = {sized(*one) for one in itertools.product(*(range(1, n + 1) for n in limits))}
    fitting = {one for one in every if not mesh_spec.misfits(one, model, num_rows=num_rows)}
    assert len(found) == len(fitting) and {one.exact() for one in found} == fitting
    assert all(one.rows_factor == 1.5 for one in found)  # the exchange stays as it was
    away = [max(one.num_devices / num_devices, num_devices / one.num_devices) for one in found]
    assert away == sorted(away)
    for (far, one), (farther, other) in itertools.pairwise(zip(away, found, strict=True)):
        if far == farther and one.num_devices == other.num_devices:
            factors = [
                math.prod(max(a / b, b / a) for a, b in zip(m.sizes.values(), sizes, strict=True))
                for m in (one, other)
            ]
            assert factors[0] <= factors[1] * (1 + 1e-12)  # a product, where the code adds logs
