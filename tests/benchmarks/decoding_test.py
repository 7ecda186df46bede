"""The benchmark of a whole model that generates, at a tiny shape."""

import io

import jax
import jax.numpy as jnp
import pytest
from rich import console as rich_console

from benchmarks import decoding, model_step
from deepseek_jax.nn.model import Decoder
from tests.benchmarks import model_step_test

REQUEST = model_step_test.SIZES | {"prompt": 16, "few": 2, "many": 6, "num_runs": 2}


@pytest.mark.deep
def test_it_measures_the_steps_between_few_and_many_tokens():
    spec = model_step.spec_for(REQUEST, "auto", "auto", "none")
    params = jax.jit(lambda key: model_step.initial(Decoder(spec), key))(jax.random.key(0))
    found = decoding.measure(spec, params, REQUEST, 2)
    assert found["batch"] == 2
    assert abs(found["seconds"]) < 1.0


def test_bytes_of_a_step_by_hand():
    sizes = model_step.SIZES | {"experts": 4, "top_k": 2, "layers": 3, "vocab": 100}
    sizes |= {"dim": 10, "hidden": 20, "heads": 3, "kv_heads": 1, "head_dim": 5}
    # Two sequences choose 4 (1 - 1/4) = 3 experts of three matrices; 8 heads of 5; the head.
    assert decoding.bytes_of_a_step(sizes, 2) == 2 * 10 * (3 * (3 * 3 * 20 + 8 * 5) + 100)


def test_the_table_has_ratios_to_the_faster_peer_of_as_many_sequences():
    def one(name, batch, seconds):
        return {"name": name, "batch": batch, "seconds": seconds}

    found = {
        "ours": [one("deepseek_jax", 1, 1e-3), one("deepseek_jax", 8, 2e-3)],
        "peer": {
            "measured": [one("a", 1, 4e-3), one("a", 8, 9e-3), one("b", 1, 3e-3)],
            "torch": "2",
            "transformers": "5",
        },
        "copy_bytes_per_second": decoding.bytes_of_a_step(REQUEST, 1) / 0.5e-3,
        "request": REQUEST,
        "made_with": {"device": "a", "jax": "b", "python": "c", "dtype": jnp.bfloat16},
    }
    console = rich_console.Console(file=io.StringIO(), width=130)
    decoding.report(console, found)
    lines = [line.split() for line in console.file.getvalue().splitlines() if "deepseek" in line]
    assert [line[4] for line in lines] == ["3.0", "4.5"]
    assert lines[0][3] == "1,000" and lines[1][3] == "4,000"
    assert lines[0][-1] == "0.50"
