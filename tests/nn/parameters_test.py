"""Parameters rounded once for many steps."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.nn import parameters
from deepseek_jax.training import parameter_groups
from tests import tiny
from tests.nn import steered_test

SPARSE = dataclasses.replace(tiny.SPARSE, num_shared_experts=1, compute_dtype="bfloat16")


def plain(spec):
    model, variables = tiny.make(spec)
    return model, variables, {}


def steered():
    model, variables = steered_test.make(steered_test.TASK, noise=0.5)
    spec = dataclasses.replace(tiny.SPARSE, compute_dtype="bfloat16")
    return model.clone(spec=spec), variables, {"description": steered_test.SAID}


def rounded(variables):
    layers = parameters.rounded({"params": variables["params"]["layers"]}, jnp.bfloat16)["params"]
    return variables | {"params": variables["params"] | {"layers": layers}}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: plain(SPARSE), id="sparse, a shared expert"),
        pytest.param(
            lambda: plain(dataclasses.replace(tiny.DENSE, compute_dtype="bfloat16")),
            id="dense",
            marks=pytest.mark.deep,
        ),
        pytest.param(steered, id="steered", marks=pytest.mark.deep),
    ],
)
@pytest.mark.deep
def test_rounding_changes_no_bit_of_the_logits(make):
    model, variables, task = make()
    tokens, context = tiny.rows()
    before, after = (
        tiny.applied(model, each, tokens, **context, **task).logits
        for each in (variables, rounded(variables))
    )
    assert bool(jnp.array_equal(before, after))


def test_all_matrices_are_rounded_but_what_is_used_in_float32():
    _, variables = tiny.make(SPARSE)
    leaves = jax.tree_util.tree_leaves_with_path(rounded(variables)["params"]["layers"])
    wide = {
        parameter_groups.parameter_name(path)
        for path, leaf in leaves
        if leaf.dtype == jnp.float32 and leaf.ndim > 2  # the first axis is of layers
    }
    assert wide == {
        "attention.summary_positions",
        "attention.summary_queries",
        "feed_forward.router.kernel",
    }
