"""The benchmark of a whole model at a tiny shape."""

import io
import math

import jax
import jax.numpy as jnp
import pytest
from rich import console as rich_console

from benchmarks import model_step
from deepseek_jax.nn.model import Decoder
from deepseek_jax.training import progress

SIZES = model_step.SIZES | {
    "layers": 2,
    "dim": 32,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "experts": 4,
    "top_k": 2,
    "hidden": 16,
    "vocab": 96,
    "batch": 2,
    "length": 32,
    "block": 16,
    "steps": 2,
    "warmup": 0,
}


def _spec():
    return model_step.spec_for(SIZES, "tiles", "loop", "none")


@pytest.mark.deep
def test_it_measures_a_model_that_knows_nothing():
    found = model_step.measure(_spec(), SIZES, trace=None)
    assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0.0
    assert abs(found["loss"] - math.log(96)) < 1.0
    assert found["gradient_norm"] > 0.0
    assert found["peak_bytes"] > 2 * found["num_parameters"] * 2


@pytest.mark.deep
def test_gradients_are_of_every_parameter_in_its_dtype():
    model = Decoder(_spec())
    params = jax.jit(lambda key: model_step.initial(model, key))(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 32), 0, 96, jnp.int32)
    _, found = jax.jit(lambda *inputs: model_step.gradients(model, *inputs))(params, tokens)
    small = 0
    for (path, leaf), of in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(found), strict=True
    ):
        assert of.dtype == leaf.dtype and of.shape == leaf.shape
        assert jnp.any(of != 0), path
        small += leaf.size if leaf.dtype == jnp.float32 else 0
    assert small < 0.1 * sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_table_has_ratios_to_the_peer(monkeypatch):
    monkeypatch.setattr(progress, "peak_flops", lambda _: 128e6)
    ours = {
        "name": "ours",
        "seconds": [0.4, 0.5, 9.0],
        "first_seconds": 3.0,
        "peak_bytes": 3e9,
        "allocator_peak_bytes": None,
        "gradient_norm": 1.0,
        "loss": 4.6,
        "num_parameters": 10,
        "active_parameters": 5,
        "flops_per_token": 1e5,
    }
    theirs = ours | {"name": "theirs", "seconds": [1.0], "peak_bytes": 6e9, "loss": 9.0}
    found = {
        "ours": [ours],
        "peer": {"measured": [theirs], "device": "a", "torch": "2", "transformers": "5"},
        "request": SIZES,
        "made_with": {"device": "a", "jax": "b", "python": "c"},
    }
    console = rich_console.Console(file=io.StringIO(), width=200)
    model_step.report(console, found)
    text = console.file.getvalue()
    line = next(line for line in text.splitlines() if line.startswith("  ours"))
    # Half a second for 64 tokens, 12.8 MFLOP/s of 128; half of the memory.
    assert line.split() == "ours 500.0 128 2.00 10.0% 3.0 GB 0.50 3.0 4.600".split()
    assert "FAR FROM ln(96) = 4.564: ['theirs']" in text
