"""Mutants of the grouped matmuls."""

import functools

from tests.mutants.mutant import mutant_of

_TILES = "deepseek_jax/ops/grouped/tiles.py"
_LOOP = "deepseek_jax/ops/grouped/loop.py"
_TRITON = "deepseek_jax/ops/grouped/triton.py"
_MEGABLOX = "deepseek_jax/ops/grouped/megablox.py"
_MATMUL = "deepseek_jax/ops/grouped/matmul.py"
_SWIGLU = "deepseek_jax/ops/grouped/swiglu.py"
_SPREADING = "deepseek_jax/ops/grouped/spreading.py"
_SPREADING_TEST = "tests/ops/grouped/spreading_test.py::test_rows_are_those_of_a_gather"
_FEW_ROWS = "deepseek_jax/ops/grouped/few_rows.py"
_FEW_TOKENS = "deepseek_jax/ops/grouped/few_tokens.py"
_FEW_TOKENS_TEST = "tests/ops/grouped/few_tokens_test.py"
_WALK = "deepseek_jax/ops/grouped/hopper/walk.py"
_TILES_FOUND = (
    "tests/ops/grouped/walk_test.py::test_each_row_is_in_one_tile_of_its_group_and_found_there"
)
_LAYER = "tests/ops/grouped/swiglu_test.py"
_VALUES = "test_answers_and_gradients_are_those_of_float64"


_mutant = functools.partial(mutant_of, own="tests/ops/grouped/matmul_test.py")

MUTANTS = (
    _mutant(
        _TILES,
        "rows of no group have no tile",
        "sizes = jnp.append(sizes, num_rows - jnp.sum(sizes))",
        "sizes = jnp.append(sizes, 0)",
        "tests/ops/grouped/tiles_test.py::test_by_hand",
    ),
    _mutant(
        _TILES,
        "a tile goes on into the next group",
        "jnp.clip(ends[group] - start, 0, tile_rows)",
        "jnp.full_like(start, tile_rows)",
        "tests/ops/grouped/tiles_test.py::test_by_hand",
    ),
    _mutant(
        _LOOP,
        "a tile overwrites the rows before it",
        "answers = jnp.where(mine[:, None], answers, before)",
        "answers = answers + 0 * before",
        _VALUES,
    ),
    _mutant(
        _LOOP,
        "rows of other groups are summed too",
        "jnp.where(mine[:, None], jax.lax.dynamic_slice_in_dim(x, start, height), 0)",
        "jax.lax.dynamic_slice_in_dim(x, start, height)",
        _VALUES,
    ),
    _mutant(
        _TRITON,
        "rows of no group get the last matrix",
        "jnp.where(group < num_groups, jnp.int32(num_in // tile.depth), jnp.int32(0))",
        "jnp.int32(num_in // tile.depth)",
        f"{_VALUES}[zeros, not whole tiles, rows of none-triton-float32]",
    ),
    _mutant(
        _TRITON,
        "a tile is stored whole",
        "is_mine = (row >= first) & (row < first + size)",
        "is_mine = (row >= 0) & (row < num_rows)",
        f"{_VALUES}[single rows-triton-float32]",
    ),
    _mutant(
        _TRITON,
        "the last rows of a group are left out of its gradient",
        "num_steps = (end - start + tile.depth - 1) // tile.depth",
        "num_steps = num_whole",
        f"{_VALUES}[one past a tile-triton-float32]",
    ),
    _mutant(
        _TRITON,
        "a group's gradient has rows of the next",
        "is_mine = (first + jnp.arange(tile.depth, dtype=jnp.int32) < end)[:, None]",
        "is_mine = (first + jnp.arange(tile.depth, dtype=jnp.int32) < rows_ref.shape[0])[:, None]",
        f"{_VALUES}[single rows-triton-float32]",
    ),
    _mutant(
        _TRITON,
        "all columns are those of the first tile",
        "columns = pl.ds(column * tile.columns, tile.columns)\n    start = jnp.minimum",
        "columns = pl.ds(0 * column, tile.columns)\n    start = jnp.minimum",
        "test_many_tiles[triton-bfloat16]",
    ),
    _mutant(
        _TRITON,
        "a matrix's gradient has one tile of rows",
        "across = pl.ds(row * tile.rows, tile.rows)",
        "across = pl.ds(0 * row, tile.rows)",
        "test_many_tiles[triton-bfloat16]",
    ),
    _mutant(
        _TRITON,
        "steps of one depth, whatever the matrices",
        "depth = tiles.largest_divisor(num_in, _DEPTHS)",
        "depth = _DEPTHS[0]",
        "test_many_tiles[triton-64-rows]",
    ),
    _mutant(
        _TRITON,
        "float32 rounded to bfloat16",
        "return jnp.dot(x, y, precision=precision, preferred_element_type=jnp.float32)",
        "return jnp.dot(*(z.astype(jnp.bfloat16) for z in (x, y)), precision=precision, "
        "preferred_element_type=jnp.float32)",
        f"{_VALUES}[even-triton-float32]",
    ),
    _mutant(
        _SPREADING,
        "empty rows are left as they were",
        "(rows >= num_used) & (rows < num_rows)",
        "(rows > num_used) & (rows < num_rows)",
        _SPREADING_TEST,
    ),
    _mutant(
        _SPREADING,
        "a token has the rows of its first choice alone",
        "plt.load(row_ref.at[window, jnp.int32(k)]",
        "plt.load(row_ref.at[window, jnp.int32(0 * k)]",
        _SPREADING_TEST,
    ),
    _mutant(
        _FEW_ROWS,
        "a group begins behind its rows",
        "jnp.where(index < group, sizes, 0)",
        "jnp.where(index <= group, sizes, 0)",
        "test_any_sizes_of_few_rows",
    ),
    _mutant(
        _FEW_ROWS,
        "few rows of no group get the last matrix",
        "jnp.where(group < num_groups, jnp.int32(num_in // tile.depth), jnp.int32(0))",
        "jnp.int32(num_in // tile.depth)",
        "test_any_sizes_of_few_rows",
    ),
    _mutant(
        _FEW_ROWS,
        "a group has one tile of rows",
        "num_tiles = (size + _TILE_ROWS - 1) // _TILE_ROWS",
        "num_tiles = jnp.minimum(size, 1)",
        "test_any_sizes_of_few_rows",
    ),
    _mutant(
        _FEW_TOKENS,
        "few tokens of float32 are multiplied with every chosen expert",
        "num_tokens <= MOST_TOKENS and dtype in _DTYPES",
        "num_tokens <= MOST_TOKENS",
        f"{_FEW_TOKENS_TEST}::test_tokens_of_32_bits_are_sorted",
    ),
    _mutant(
        _FEW_TOKENS,
        "no assignment is an expert's first",
        "k * num_tokens + place < program",
        "k * num_tokens + place <= program",
        f"{_FEW_TOKENS_TEST}::test_answers_are_those_of_float64",
    ),
    _mutant(
        _FEW_TOKENS,
        "a choice has the weight of the first",
        "share = jnp.where(mine.choice == k, ",
        "share = jnp.where(k == 0, ",
        f"{_FEW_TOKENS_TEST}::test_answers_are_those_of_float64",
    ),
    _mutant(
        _FEW_TOKENS,
        "answers of no expert are added",
        "jnp.where(is_there, answers, 0.0)",
        "answers",
        f"{_FEW_TOKENS_TEST}::test_answers_are_those_of_float64",
    ),
    _mutant(
        _FEW_TOKENS,
        "a program stores what others own in the hidden layer",
        "mask=mine.is_mine[:, None])",
        "mask=mine.is_mine[:, None] | True)",
        f"{_FEW_TOKENS_TEST}::test_answers_are_those_of_float64",
    ),
    _mutant(
        _FEW_TOKENS,
        "a program stores what others own in answers",
        "plt.store(own, total, mask=is_mine)",
        "plt.store(own, total, mask=is_mine | True)",
        f"{_FEW_TOKENS_TEST}::test_answers_are_those_of_float64",
    ),
    _mutant(
        _SPREADING,
        "all programs clear the same rows",
        "rows = (program - num_of_tokens) * tile.height + index",
        "rows = 0 * program + index",
        _SPREADING_TEST,
    ),
    _mutant(
        _FEW_TOKENS,
        "all parts of a sum are the first",
        "pl.ds((part * num_steps + i) * tile.depth, tile.depth)",
        "pl.ds((0 * part + i) * tile.depth, tile.depth)",
        f"{_FEW_TOKENS_TEST}::test_any_sides",
    ),
    _mutant(
        _FEW_TOKENS,
        "a program multiplies with one column of tiles",
        "return pl.ds(pl.program_id(0) * tile.columns, tile.columns)",
        "return pl.ds(0 * pl.program_id(0), tile.columns)",
        f"{_FEW_TOKENS_TEST}::test_any_sides",
    ),
    _mutant(
        _MEGABLOX,
        "rows past all groups are left as they were",
        "jnp.where(is_held[:, None], out, 0)",
        "out",
        f"{_VALUES}[none has any-megablox-float32]",
    ),
    _mutant(
        _MATMUL,
        "the gradient of rows by matrices that are not transposed",
        "d_out, weights, group_sizes, backend=backend, interpret=interpret, transposed=True",
        "d_out, weights, group_sizes, backend=backend, interpret=interpret, transposed=False",
        f"{_VALUES}[even-loop-float32]",
    ),
    _mutant(
        _MATMUL,
        "a shared matrix gets one device's gradient",
        "_matmul(*(varying.like(x, *arguments) for x in arguments), backend, interpret)",
        "_matmul(*arguments, backend, interpret)",
        "test_on_two_devices_the_gradient_of_shared_matrices_is_the_sum",
    ),
    _mutant(
        _SWIGLU,
        "the hidden layer is not weighed",
        "(weights * (jax.nn.silu(wide) * wide_ups))",
        "(jax.nn.silu(wide) * wide_ups)",
        f"{_LAYER}::test_by_hand",
    ),
    _mutant(
        _SWIGLU,
        "the hidden layer is rounded before it is weighed",
        "    return (weights * (jax.nn.silu(wide) * wide_ups)).astype(gates.dtype)",
        "    inner = (jax.nn.silu(wide) * wide_ups).astype(gates.dtype).astype(jnp.float32)\n"
        "    return (weights * inner).astype(gates.dtype)",
        f"{_LAYER}::test_rounds_the_weighted_hidden_layer_once",
    ),
    _mutant(
        _SWIGLU,
        "the gradient of gate without the slope of the gate",
        "* share * (1.0 + wide * (1.0 - share))",
        "* share",
        f"{_LAYER}::test_by_hand",
    ),
    _mutant(
        _SWIGLU,
        "the gradient of up without the weight",
        "d_ups=(weighted * silu)",
        "d_ups=(wide_d * silu)",
        f"{_LAYER}::test_by_hand",
    ),
    _mutant(
        _SWIGLU,
        "the gradient of a weight has the weight in it",
        "jnp.sum(wide_d * (silu * wide_ups), axis=1)",
        "jnp.sum(weighted * (silu * wide_ups), axis=1)",
        f"{_LAYER}::test_by_hand",
    ),
    _mutant(
        _SWIGLU,
        "tokens learn from the gate only",
        "summed_rows(*d_rows, row_ids",
        "summed_rows(d_rows[0], row_ids",
        f"{_LAYER}::{_VALUES}[loop-float32]",
    ),
    _mutant(
        _SWIGLU,
        "gradients of gate and up are exchanged in the layer",
        "(rows, pulled.d_gates, plan),\n        kernels.outer(rows, pulled.d_ups, plan),",
        "(rows, pulled.d_ups, plan),\n        kernels.outer(rows, pulled.d_gates, plan),",
        f"{_LAYER}::{_VALUES}[loop-float32]",
    ),
    _mutant(
        _SWIGLU,
        "the forward pass alone writes what a backward pass needs",
        "kernels._replace(recompute=True)",
        "kernels",
        "tests/ops/grouped/fused_test.py::test_only_a_backward_pass_makes_the_hidden_layers_kernel_"
        "write_more_than_it",
    ),
    _mutant(
        _SWIGLU,
        "nothing is recomputed",
        "keep = not kernels.recompute",
        "keep = True",
        f"{_LAYER}::test_answers_are_not_kept",
    ),
    _mutant(
        _SWIGLU,
        "what is recomputed is kept after all",
        "jax.lax.optimization_barrier((tokens, weights, d_out))",
        "tokens, weights, d_out",
        f"{_LAYER}::test_what_is_made_again_stands_behind_a_barrier",
    ),
    _mutant(
        _SWIGLU,
        "shared tokens get one device's gradient",
        "jax.tree.map(lambda x: varying.like(x, *leaves), arguments)",
        "jax.tree.map(lambda x: x, arguments)",
        f"{_LAYER}::test_tokens_that_all_devices_share_get_the_sum_of_their_gradients",
    ),
    _mutant(
        _SWIGLU,
        "fused kernels are taken for those of any backend",
        "if fused and backend not in FUSED:",
        "if fused and backend in FUSED:",
        f"{_LAYER}::test_fused_kernels_of_a_backend_that_has_none_raise",
    ),
    _mutant(
        _SWIGLU,
        "the layer is never fused",
        "_Kernels(backend, interpret, recompute, fused)",
        "_Kernels(backend, interpret, recompute, False)",
        "tests/ops/grouped/fused_test.py::test_the_layer_lowers_to_seven_kernels_and_says_over_which"
        "_devices_it_varies",
    ),
    _mutant(
        _WALK,
        "rows are looked for where tiles would begin at their groups",
        "begins = starts // EIGHT * EIGHT",
        "begins = starts",
        _TILES_FOUND,
    ),
    _mutant(
        _WALK,
        "a group's tiles are as many as if they began at it",
        "jax.lax.div(end - begin + HEIGHT - 1, jnp.int32(HEIGHT))",
        "jax.lax.div(end - tile.end + HEIGHT - 1, jnp.int32(HEIGHT))",
        _TILES_FOUND,
    ),
)
