"""The benchmark of attention at a tiny shape, interpreted."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console

from benchmarks import attention, attention_tiles
from benchmarks.attention import Shape
from deepseek_jax.ops.flash.triton import Tile

SHAPE = Shape(2, 48, 4, 2, 16)


@pytest.fixture(scope="module")
def measured(request):
    subjects = {name: rest for name, *rest in attention.subjects(SHAPE, jnp.dtype("float32"))}
    assert set(subjects) == {"ours", "ours, documents of 512", "tiles"}
    attend, is_packed = subjects["ours"]
    return attention.measure(SHAPE, "ours", attend, jnp.dtype("float32"), is_packed=is_packed)


@pytest.mark.deep
def test_it_measures_right_answers(measured):
    assert measured["all_finite"]
    assert 0.0 < max(measured["errors"].values()) < 2e-6
    assert measured["forward_seconds"] > 0.0 < measured["backward_seconds"]


@pytest.mark.deep
def test_the_exact_answers_are_those_of_a_plain_softmax(monkeypatch):
    monkeypatch.setattr(attention, "DOCUMENT_TOKENS", 16)
    inputs = attention.make_inputs(SHAPE, jnp.float32, is_packed=True)

    def plain(query, key, value):
        seen = inputs.document_ids[:, :, None] == inputs.document_ids[:, None, :]
        seen &= jnp.tril(jnp.ones(seen.shape[1:], bool))[None]
        logits = jnp.einsum("blnh,bsnh->bnls", query, jnp.repeat(key, 2, 2)) / 4.0
        weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -1e30))
        return jnp.einsum("bnls,bsnh->blnh", weights, jnp.repeat(value, 2, 2))

    out, pull = jax.vjp(plain, *inputs[:3])
    found = (out, *pull(inputs.d_out))
    assert max(attention.errors(inputs, *found).values()) < 2e-6
    wrong = attention.errors(inputs, *(1.5 * x for x in found))
    assert wrong == pytest.approx(dict.fromkeys(wrong, 0.5), abs=1e-5)


def test_documents_fill_rows_and_their_pairs_are_counted():
    ids = attention.draw_documents(Shape(3, 4096, 1, 1, 16))
    assert ids.shape == (3, 4096) and ids.min() == 1 and (np.diff(ids) >= 0).all()
    sizes = np.unique(ids[0], return_counts=True)[1]
    assert 256 <= sizes[:-1].min() and sizes.max() <= 768
    assert attention.num_pairs(np.array([[1, 1, 1, 2], [1, 2, 2, 2]])) == 14


def test_the_table_has_rates_of_pairs_that_are_seen():
    each = {
        "shape": list(SHAPE),
        "name": "ours",
        "num_pairs": 10**9,
        "forward_seconds": 0.256,
        "backward_seconds": 0.32,
        "errors": {"out": 1e-3},
        "all_finite": True,
    }
    peer = {"measured": [each | {"name": "torch X"}], "refused": ["torch Y: no"], "torch": "2"}
    made = {"device": "a", "jax": "b", "python": "c", "dtype": "float32"}
    console = rich_console.Console(file=io.StringIO(), width=130)
    attention.report(console, {"ours": [each], "peer": peer, "made_with": made})
    text = console.file.getvalue()
    # 4 x 4 heads x 16 x 1e9 in 0.256 s forward, 2.5 times as much in 0.32 s backward.
    assert text.count(" 1.0 ") == text.count(" 2.0 ") == 2
    assert "torch X" in text and "torch Y: no" in text


@pytest.mark.deep
@pytest.mark.parametrize("kernel", attention_tiles.NUM_PRODUCTS)
def test_each_kernel_is_measured_with_each_tile(kernel):
    inputs = attention.make_inputs(SHAPE, jnp.float32, is_packed=False)
    tiles = [Tile(16, 16, 4, 2), Tile(32, 16, 4, 2)]
    found = attention_tiles.measure(inputs, kernel, tiles)
    assert {tile for tile, _ in found} == set(tiles)
    assert all(took > 0.0 for _, took in found)
    console = rich_console.Console(file=io.StringIO(), width=100)
    attention_tiles.report(console, SHAPE, kernel, inputs, found)
    assert "16x16x4x2" in console.file.getvalue()
