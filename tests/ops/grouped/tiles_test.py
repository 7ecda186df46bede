"""Laws of `ops.grouped.tiles`."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.ops.grouped import tiles


def test_by_hand():
    # Rows 0-4 are of group 0, 5 of group 2, 6 of none; tiles of two rows.
    found = tiles.row_tiles(jnp.array([5, 0, 1]), num_rows=7, tile_rows=2)
    assert found.group.tolist() == [0, 0, 0, 2, 3, 3, 3]
    assert found.start.tolist()[:5] == [0, 2, 4, 5, 6]
    assert found.size.tolist() == [2, 2, 1, 1, 1, 0, 0]


def sizes_of(cuts):
    """Sizes of as many groups as there are cuts, of 40 rows; the rest is of none."""
    return np.diff(np.sort(cuts), prepend=0).astype(np.int32)


CUTS = st.lists(st.integers(0, 40), min_size=5, max_size=5)
IN_TILES = jax.jit(functools.partial(tiles.row_tiles, num_rows=40, tile_rows=4))
ENDS, ORDER = jax.jit(tiles.group_ends), jax.jit(tiles.largest_first)


@hypothesis.given(CUTS)
def test_every_row_is_in_one_tile_and_that_of_its_group(cuts):
    sizes = sizes_of(cuts)
    found = jax.device_get(IN_TILES(jnp.asarray(sizes)))
    owner = np.full(40, -1)
    for group, start, size in zip(*found, strict=True):
        assert 0 <= size <= 4
        assert (owner[start : start + size] == -1).all()
        owner[start : start + size] = group
    others = 40 - sizes.sum()
    assert owner.tolist() == np.repeat(np.arange(6), [*sizes, others]).tolist()


@hypothesis.given(CUTS)
def test_ends_and_order_are_those_of_numpy(cuts):
    sizes = sizes_of(cuts) // 8  # so that many are equal
    np.testing.assert_array_equal(ENDS(jnp.asarray(sizes)), np.cumsum(sizes))
    np.testing.assert_array_equal(ORDER(jnp.asarray(sizes)), np.argsort(-sizes, stable=True))


def test_no_loop_and_no_sorting_on_the_device():
    def all_of_it(sizes):
        listed = tiles.row_tiles(sizes, num_rows=4096, tile_rows=128)
        return listed, tiles.group_ends(sizes), tiles.largest_first(sizes)

    program = jax.jit(all_of_it).lower(jnp.zeros(128, jnp.int32)).as_text()
    assert "stablehlo.while" not in program
    assert "stablehlo.sort" not in program
    assert "stablehlo.reduce_window" not in program


def test_the_first_that_divides():
    assert tiles.largest_divisor(384, (256, 128, 64)) == 128
