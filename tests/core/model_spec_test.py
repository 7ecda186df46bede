"""Every rule of ModelSpec: a bad setting is refused by name, value and what is allowed."""

import dataclasses
from typing import Any

import pytest

from deepseek_jax.core import model_spec
from tests import tiny
from tests.core import rules

COUNTS = (
    "vocab_size",
    "context_length",
    "num_layers",
    "model_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "block_size",
    "num_experts",
    "num_groups",
    "top_groups",
    "top_k",
    "expert_hidden_dim",
    "scan_unroll",
)
BROKEN = [  # base, changes, what the message starts with
    *((tiny.SPARSE, {name: 0}, f"model.{name}=0: must be at least 1") for name in COUNTS),
    (tiny.SPARSE, {"num_summaries": -1}, "model.num_summaries=-1: must be at least 0"),
    (tiny.SPARSE, {"num_shared_experts": -1}, "model.num_shared_experts=-1: must be at least 0"),
    (tiny.SPARSE, {"head_dim": 7}, "model.head_dim=7: must be even"),
    (
        tiny.SPARSE,
        {"num_kv_heads": 3},
        "model.num_kv_heads=3: must be a divisor of model.num_heads=4",
    ),
    (
        tiny.SPARSE,
        {"scan_unroll": tiny.SPARSE.num_layers + 1},
        f"model.scan_unroll={tiny.SPARSE.num_layers + 1}: must be at most model.num_layers="
        f"{tiny.SPARSE.num_layers}",
    ),
    (tiny.SPARSE, {"rope_base": 1.0}, "model.rope_base=1.0: must be above 1"),
    (tiny.SPARSE, {"norm_eps": 0.0}, "model.norm_eps=0.0: must be in (0, 1)"),
    (tiny.SPARSE, {"norm_eps": float("nan")}, "model.norm_eps=nan: must be in (0, 1)"),
    (
        tiny.SPARSE,
        {"context_length": 66},
        "model.context_length=66: must be a multiple of model.block_size=4",
    ),
    (tiny.SPARSE, {"attention": "full"}, "model.num_summaries=2: must be zero when"),
    (
        tiny.SPARSE,
        {"attention_kernel": "triton"},
        "model.attention_kernel='triton': must be 'tiles' when model.attention=\"local_global\"",
    ),
    (
        tiny.SPARSE,
        {"num_summaries": 5},
        "model.num_summaries=5: must be at most model.block_size=4",
    ),
    (
        tiny.SPARSE,
        {"num_groups": 3, "top_groups": 3},
        "model.num_groups=3: must be a divisor of model.num_experts=8",
    ),
    (tiny.SPARSE, {"top_groups": 5}, "model.top_groups=5: must be at most model.num_groups=4"),
    (
        tiny.SPARSE,
        {"top_k": 5},
        "model.top_k=5: must be at most 4, the experts in model.top_groups=2 groups",
    ),
    (tiny.SPARSE, {"router_scale": 0.0}, "model.router_scale=0.0: must be above 0"),
    (tiny.DENSE, {"num_shared_experts": 1}, "model.num_shared_experts=1: must be 0 in a dense"),
    (
        tiny.DENSE,
        {"router_scores": "sigmoid"},
        "model.router_scores='sigmoid': must be 'softmax' in a dense",
    ),
    (
        tiny.DENSE,
        {"router_weights": "renormalized"},
        "model.router_weights='renormalized': must be 'raw' in a dense",
    ),
    (tiny.DENSE, {"router_scale": 2.0}, "model.router_scale=2.0: must be 1.0 in a dense"),
    (
        tiny.DENSE,
        {"dispatch": "capacity", "capacity_factor": 1.0},
        "model.dispatch='capacity': must be 'dropless' in a dense",
    ),
    (
        tiny.SPARSE,
        {"dispatch": "capacity", "capacity_factor": 0.5},
        "model.capacity_factor=0.5: must be at least 1",
    ),
    (tiny.SPARSE, {"capacity_factor": 1.5}, "model.capacity_factor=1.5: must be 0.0 when"),
    (
        tiny.SPARSE,
        {"remat": "experts"},
        "model.remat='experts': must be 'none' or 'block' with model.expert_kernel='loop': ",
    ),
    (
        tiny.SPARSE,
        {
            "remat": "experts",
            "expert_kernel": "auto",
            "dispatch": "capacity",
            "capacity_factor": 1.0,
        },
        "model.remat='experts': must be 'none' or 'block' with model.dispatch='capacity', ",
    ),
    (tiny.SPARSE, {"router_z_weight": -0.5}, "model.router_z_weight=-0.5: must be at least 0"),
    (tiny.SPARSE, {"balance": "none"}, "model.balance='none': must be \"none\" in a dense model"),
    (tiny.DENSE, {"balance": "loss"}, "model.balance='loss': must be \"none\" in a dense model"),
    (
        tiny.SPARSE,
        {"load_balance_weight": 0.0},
        "model.load_balance_weight=0.0: must be above 0 with model.balance='loss'",
    ),
    (
        tiny.SPARSE,
        {"bias_update_rate": 0.1},
        "model.bias_update_rate=0.1: must be 0.0 with model.balance='loss'",
    ),
    (
        tiny.BIASED,
        {"bias_update_rate": 0.0},
        "model.bias_update_rate=0.0: must be above 0 with model.balance='bias'",
    ),
    (
        tiny.BIASED,
        {"load_balance_weight": 0.1},
        "model.load_balance_weight=0.1: must be 0.0 with model.balance='bias'",
    ),
    (tiny.DENSE, {"router_z_weight": 0.1}, "model.router_z_weight=0.1: must be 0.0 in a dense"),
]


def broken_line(base, changes, message):
    return rules.line_of_broken_rule(
        model_spec, lambda: dataclasses.replace(base, **changes), message
    )


@pytest.mark.parametrize(("base", "changes", "message"), BROKEN, ids=[case[2] for case in BROKEN])
def test_a_broken_rule_names_key_value_and_what_is_allowed(base, changes, message):
    broken_line(base, changes, message)


def test_every_rule_has_an_example():
    assert {broken_line(*case) for case in BROKEN} == rules.lines_of_rules(model_spec)


def test_specs_are_frozen_and_hashable():
    assert hash(tiny.SPARSE) == hash(dataclasses.replace(tiny.SPARSE))
    spec: Any = tiny.SPARSE
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.top_k = 3


def test_derived_values():
    assert (tiny.SPARSE.num_blocks, tiny.SPARSE.is_dense, tiny.DENSE.is_dense) == (16, False, True)
    packed = dataclasses.replace(tiny.SPARSE, dispatch="capacity", capacity_factor=1.25)
    assert packed.dropless() == tiny.SPARSE
