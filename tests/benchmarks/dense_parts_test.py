"""The benchmark of a decoder's dense parts at a tiny shape."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console

from benchmarks import dense_parts, measuring

SIZES = {"rows": 2, "length": 16, "dim": 8, "vocab": 24, "experts": 4}


@pytest.fixture(scope="module")
def measured():
    return [dense_parts.measure(way) for way in dense_parts.ways(**SIZES)]


@pytest.mark.deep
def test_ways_of_a_part_agree(measured):
    losses = [each["value"] for each in measured if each["value"] is not None]
    assert len(losses) == 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    errors = {
        (each["what"], each["name"]): each["error"]
        for each in measured
        if each["error"] is not None
    }
    # The gradient of tokens is rounded to bfloat16.
    limits = {True: 4e-3, False: 2e-6}
    assert len(errors) == len(measured) - len(losses) == 6
    for (what, _), error in errors.items():
        assert 0.0 < error < limits["gradients" in what]


def test_each_part_begins_with_its_baseline(measured):
    made = measuring.made_with(jnp.bfloat16)
    found = {"sizes": SIZES, "ways": measured, "copy_bytes_per_second": 1e9, "made_with": made}
    console = rich_console.Console(file=io.StringIO(), width=130)
    dense_parts.report(console, found)
    text = console.file.getvalue()
    first = {each["what"]: each["name"] for each in reversed(measured)}
    assert len(first) == 4
    for what, name in first.items():
        line = next(line for line in text.splitlines() if what in line and name in line)
        assert " 1.00 " in line
