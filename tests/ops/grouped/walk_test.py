"""How a kernel for Hopper walks over tiles, and where XLA finds their rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.grouped.hopper import walk
from tests.ops.grouped import matmul_test

NUM_PROGRAMS, TILES_ACROSS = 3, 2


def all_tiles(sizes, num_rows):
    """Every program's tiles, in the order of their numbers."""
    found = []
    for program in range(NUM_PROGRAMS):
        mine = walk.Walk(
            jnp.array(sizes, jnp.int32),
            len(sizes),
            num_rows,
            TILES_ACROSS,
            jnp.int32(program),
            NUM_PROGRAMS,
        )
        tile = mine.first()
        for _ in range(int(mine.num_tiles())):
            first, across = mine.corner(tile)
            found.append((int(tile.number), int(tile.group), int(first) * 8, int(across), tile))
            tile = mine.following(tile)
    return sorted(found, key=lambda each: each[0])


@pytest.mark.parametrize("sizes", matmul_test.SIZES.values(), ids=matmul_test.SIZES)
@pytest.mark.deep
def test_each_row_is_in_one_tile_of_its_group_and_found_there(sizes):
    num_rows = matmul_test.NUM_ROWS
    every = all_tiles(sizes, num_rows)
    assert [number for number, *_ in every] == list(range(len(every)))
    group_of = np.repeat(np.arange(len(sizes) + 1), [*sizes, num_rows - sum(sizes)])
    place = np.full((TILES_ACROSS, num_rows), -1)
    for number, group, first, across, tile in every:
        for row in range(max(first, int(tile.start)), min(first + walk.HEIGHT, int(tile.end))):
            assert group_of[row] == group
            assert place[across, row] == -1
            place[across, row] = number // TILES_ACROSS * walk.HEIGHT + row - first
    found = walk.row_in_tiles(jnp.array(sizes, jnp.int32), num_rows)
    np.testing.assert_array_equal(place, np.tile(found, (TILES_ACROSS, 1)))
    assert place.max() < walk.rows_of_all_tiles(jnp.array(sizes, jnp.int32), num_rows)


@pytest.mark.parametrize(("num_rows", "rows"), [(3, 64), (64, 64), (65, 72), (200, 200)])
def test_whole_rows(num_rows, rows):
    assert walk.whole_rows(num_rows) == rows
    assert walk.whole_rows(num_rows, least=128) == max(rows, 128)
