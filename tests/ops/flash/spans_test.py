"""Spans of tiles against a look at every pair of tokens."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.flash import spans

LENGTH = 23


def pairs(ids, query_tile, key_tile):
    """Of each pair of tiles, whether some query sees some key, and whether all see all."""
    length = len(ids)
    size = [-(-length // tile) * tile for tile in (query_tile, key_tile)]
    seen = np.zeros(size, bool)
    for i in range(length):
        for j in range(i + 1):
            seen[i, j] = ids[i] == ids[j] != 0
    tiles = seen.reshape(size[0] // query_tile, query_tile, size[1] // key_tile, key_tile)
    return tiles.any(axis=(1, 3)), tiles.all(axis=(1, 3))


def check(ids, query_tile, key_tile, *, exactly):
    """No tile is missed and none is wrongly whole; `exactly` as few and as many as can be."""
    some, every = pairs(ids, query_tile, key_tile)
    sizes = {"query_tile": query_tile, "key_tile": key_tile}
    for function, meet, is_whole in (
        (spans.of_keys, some, every),
        (spans.of_queries, some.T, every.T),
    ):
        found = np.asarray(function(jnp.array([ids, ids]), **sizes))
        assert found.shape == (2, meet.shape[0], 4)
        np.testing.assert_array_equal(found[0], found[1])
        for span, row, whole in zip(found[0], meet, is_whole, strict=True):
            first, start, stop, end = span.tolist()
            assert 0 <= first <= start <= stop <= end <= len(row)
            assert not row[:first].any() and not row[end:].any()
            assert whole[start:stop].all()
            if exactly:
                assert stop - start == whole.sum()
                if row.any():
                    assert (first, end) == (row.argmax(), len(row) - row[::-1].argmax())


@pytest.mark.parametrize("sizes", [(4, 4), (8, 2), (2, 8), (16, 4)])
@pytest.mark.deep
def test_no_tile_is_visited_or_masked_without_need(sizes):
    for ids in (
        [1] * LENGTH,
        [0] * LENGTH,
        [1] * 8 + [2] * 8 + [3] * 7,
        [1] * 3 + [2] + [3] * 15 + [0] * 4,
        list(range(1, LENGTH + 1)),
    ):
        check(ids, *sizes, exactly=True)


@pytest.mark.parametrize("sizes", [(4, 4), (8, 2), (2, 8)])
def test_padding_between_tokens_is_masked(sizes):
    check([1] * 3 + [0] + [1] * 19, *sizes, exactly=False)


def test_by_hand():
    ids = jnp.array([[1, 1, 2, 2, 2, 2, 2, 0]])
    found = spans.of_keys(ids, query_tile=2, key_tile=2)
    # Queries of tile 2 see all of tile 1; tile 3, with padding, sees it in part.
    np.testing.assert_array_equal(
        found[0], [[0, 0, 0, 1], [1, 1, 1, 2], [1, 1, 2, 3], [1, 1, 1, 4]]
    )


@hypothesis.given(
    st.lists(st.integers(-1, 3), min_size=LENGTH, max_size=LENGTH),
    st.sampled_from([(4, 4), (8, 2), (2, 8)]),
)
@hypothesis.settings(max_examples=10)
def test_any_numbers_in_any_order(ids, sizes):
    check(ids, *sizes, exactly=False)


def test_no_array_of_all_pairs_of_tokens():
    ids = jax.ShapeDtypeStruct((1, 4096), jnp.int32)
    program = jax.make_jaxpr(lambda x: spans.of_keys(x, query_tile=128, key_tile=64))(ids)
    sizes = [v.aval.size for equation in program.jaxpr.eqns for v in equation.outvars]
    assert max(sizes) <= 4096
