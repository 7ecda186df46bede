"""From a node to a spec: exact keys, exact types."""

import dataclasses
import typing

import pytest

from deepseek_jax.core import config, model_spec, run_spec
from tests import tiny

NODES = {
    "model": (model_spec.ModelSpec, dataclasses.asdict(tiny.SPARSE)),
    "eval": (
        run_spec.EvalSpec,
        dict(num_rows=None, batch_size=2, prompt="def", sample_tokens=3, temperature=0.0),
    ),
}
FIELDS = [(node, name) for node, (kind, _) in NODES.items() for name in typing.get_type_hints(kind)]
OTHERS = (True, 3, 3.0, "three", None, [3], (3,))


def test_builds_what_was_given():
    for node, (kind, values) in NODES.items():
        assert dataclasses.asdict(config.from_config(kind, values, where=node)) == values


@pytest.mark.parametrize(("node", "name"), FIELDS)
def test_only_the_exact_type_is_taken(node, name):
    kind, values = NODES[node]
    hint = typing.get_type_hints(kind)[name]
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    types = {str} if choices else set(typing.get_args(hint)) or {hint}
    refused = 0
    for value in OTHERS:
        if choices or type(value) not in types:
            with pytest.raises(ValueError if choices else TypeError) as error:
                config.from_config(kind, {**values, name: value}, where=node)
            assert f"{node}.{name}={value!r}" in str(error.value)
            refused += 1
    assert refused >= len(OTHERS) - 2  # an optional field takes two of them


def test_the_wanted_type_is_named():
    kind, values = NODES["eval"]
    with pytest.raises(TypeError, match=r"eval.num_rows=True has type bool, want int or None"):
        config.from_config(kind, {**values, "num_rows": True}, where="eval")
    with pytest.raises(TypeError, match=r"eval.temperature=1 has type int, want float"):
        config.from_config(kind, {**values, "temperature": 1}, where="eval")


def test_an_unknown_key_gets_the_nearest_known_one():
    kind, values = NODES["model"]
    with pytest.raises(ValueError, match=r"unknown setting model.topk; did you mean model.top_k\?"):
        config.from_config(kind, {**values, "topk": 3}, where="model")
    kind, values = NODES["eval"]
    with pytest.raises(ValueError, match=r"unknown setting eval.zzz; known: \['batch_size', "):
        config.from_config(kind, {**values, "zzz": 3}, where="eval")


def test_every_missing_key_is_named():
    kind, values = NODES["eval"]
    rest = {name: value for name, value in values.items() if name not in ("prompt", "batch_size")}
    with pytest.raises(ValueError, match=r"missing settings: \['eval.batch_size', 'eval.prompt'\]"):
        config.from_config(kind, rest, where="eval")


def test_rules_of_the_spec_are_checked():
    kind, values = NODES["eval"]
    with pytest.raises(ValueError, match=r"eval.batch_size=0: must be at least 1"):
        config.from_config(kind, {**values, "batch_size": 0}, where="eval")
