"""Every rule of the spec of people's preferences: refused by name and value."""

import dataclasses

import pytest

from deepseek_jax.core import preference_spec
from tests.core import rules
from tests.reinforcement import tiny

SPEC = tiny.preference_spec()
BROKEN = [  # node, changes, what the message starts with
    ("pairs", {"sequence_length": 2}, "pairs.sequence_length=2: must be at least 3"),
    ("pairs", {"batch_size": 0}, "pairs.batch_size=0: must be at least 1"),
    *(
        (
            "pairs",
            {"heldout_fraction": share},
            f"pairs.heldout_fraction={share}: must be in (0, 1)",
        )
        for share in (0.0, 1.0)
    ),
    ("pairs", {"centering_weight": -0.1}, "pairs.centering_weight=-0.1: must be at least 0"),
    (
        None,
        {"mesh": dataclasses.replace(SPEC.mesh, exchange="bounded", rows_factor=2.0)},
        "mesh.exchange='bounded': must be \"exact\"",
    ),
    *(
        (
            None,
            {"pairs": dataclasses.replace(SPEC.pairs, sequence_length=length)},
            f"pairs.sequence_length={length}: must be a multiple of model.block_size=8, at most "
            "model.context_length=64",
        )
        for length in (60, 72)
    ),
]


def broken_line(node, changes, message):
    base = getattr(SPEC, node) if node else SPEC
    return rules.line_of_broken_rule(
        preference_spec, lambda: dataclasses.replace(base, **changes), message
    )


@pytest.mark.parametrize(("node", "changes", "message"), BROKEN, ids=[case[2] for case in BROKEN])
def test_a_broken_rule_names_key_value_and_what_is_allowed(node, changes, message):
    broken_line(node, changes, message)


def test_every_rule_has_an_example():
    assert {broken_line(*case) for case in BROKEN} == rules.lines_of_rules(preference_spec)


def test_what_every_stage_checks_is_checked():
    with pytest.raises(ValueError, match="seed=-1: must be at least 0"):
        dataclasses.replace(SPEC, seed=-1)
    capacity = dataclasses.replace(SPEC.model, dispatch="capacity", capacity_factor=1.0)
    with pytest.raises(ValueError, match="model.dispatch='capacity': must be \"dropless\""):
        dataclasses.replace(SPEC, model=capacity)
    late = dataclasses.replace(SPEC.optimizer, warmup_steps=5)
    with pytest.raises(ValueError, match="warmup_steps=5: must be below the 5 updates"):
        dataclasses.replace(SPEC, optimizer=late)
    with pytest.raises(ValueError, match=r"mesh.data \* mesh.expert=8: must be a divisor"):
        dataclasses.replace(SPEC, mesh=dataclasses.replace(SPEC.mesh, data=8))
