"""Flash attention as Pallas kernels that Triton compiles: NVIDIA GPUs. Floor 1.

With s_lt = q_l . k_t / sqrt(H) of the keys t that query l sees, and e_l = log sum_t exp s_lt:

    o_l = sum_t p_lt v_t                        p_lt = exp(s_lt - e_l)
    d_s_lt = p_lt (d_o_l . v_t - delta_l)       delta_l = d_o_l . o_l
    d_q_l = sum_t d_s_lt k_t / sqrt(H)
    d_k_t = sum_l d_s_lt q_l / sqrt(H)          d_v_t = sum_l p_lt d_o_l

(arXiv:2307.08691, algorithms 1 and 2, with kernels of their own for d_q and for d_k and d_v, so
that sums have one order.) Powers are of 2, e in base 2 too. One program makes one tile of a result,
in two loops over tiles of the other side: where all is seen there is no mask. Axes: B sequences,
L positions, N query heads = M key/value heads x G, H head width.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import softmax_parts, varying
from deepseek_jax.ops.flash import spans

WIDTHS = (16, 32, 64, 128)
DTYPES = ("bfloat16", "float16", "float32")


class Tile(NamedTuple):
    """Queries and keys of a step, warps of a program, steps that are loaded ahead."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """Of the three kernels: answers; gradient of queries; gradients of keys and values."""

    forward: Tile
    d_query: Tile
    d_key_value: Tile


# By the width of a head up to 64, or 128. Float32 takes twice the room, and no tensor cores.
_NARROW = Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 4, 3), Tile(64, 64, 4, 3))
_WIDE = Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 4, 2))
_FLOAT32 = Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2))


class _Shape(NamedTuple):
    """What a kernel must know of its arguments; `interpret` has no assembly."""

    length: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    interpret: bool

    @property
    def scale(self) -> float:
        """Of the logits, as powers of 2."""
        return math.log2(math.e) / math.sqrt(self.head_dim)


def tiles_for(*, length: int, head_dim: int, dtype: Any) -> Tiles:
    """The tiles of kernels, no larger than a short row needs."""
    if jnp.dtype(dtype).itemsize == 4:
        tiles = _FLOAT32
    else:
        tiles = _NARROW if head_dim <= 64 else _WIDE
    most = max(16, pl.next_power_of_2(length))
    return Tiles(
        *(
            tile._replace(queries=min(tile.queries, most), keys=min(tile.keys, most))
            for tile in tiles
        )
    )


def forward(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    document_ids: Int[Array, "B L"],
    *,
    tile: Tile,
    interpret: bool,
) -> tuple[Float[Array, "B L N H"], Float[Array, "B N L"]]:
    """The answers, and the logarithms e in base 2 of the sums of weights; 0 for padding."""
    shape = _shape(query, key, interpret)
    of_keys = spans.of_keys(document_ids, query_tile=tile.queries, key_tile=tile.keys)
    num_sequences = query.shape[0]
    return _call(
        functools.partial(_forward_kernel, tile=tile, shape=shape),
        (of_keys, document_ids, query, key, value),
        out_shape=(
            varying.shape_like(query.shape, query),
            varying.shape_like((num_sequences, shape.num_heads, shape.length), query, jnp.float32),
        ),
        grid=(shape.num_heads, of_keys.shape[1], num_sequences),
        tile=tile,
        interpret=interpret,
        name="flash_forward",
    )


def d_query(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    document_ids: Int[Array, "B L"],
    out: Float[Array, "B L N H"],
    log_sums: Float[Array, "B N L"],
    d_out: Float[Array, "B L N H"],
    *,
    tile: Tile,
    interpret: bool,
) -> tuple[Float[Array, "B L N H"], Float[Array, "B N L"]]:
    """The gradient of queries, and delta, which the other gradients need."""
    shape = _shape(query, key, interpret)
    of_keys = spans.of_keys(document_ids, query_tile=tile.queries, key_tile=tile.keys)
    return _call(
        functools.partial(_d_query_kernel, tile=tile, shape=shape),
        (of_keys, document_ids, query, key, value, out, log_sums, d_out),
        out_shape=(
            varying.shape_like(query.shape, query),
            varying.shape_like(log_sums.shape, log_sums),
        ),
        grid=(shape.num_heads, of_keys.shape[1], query.shape[0]),
        tile=tile,
        interpret=interpret,
        name="flash_d_query",
    )


def d_key_value(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    document_ids: Int[Array, "B L"],
    log_sums: Float[Array, "B N L"],
    deltas: Float[Array, "B N L"],
    d_out: Float[Array, "B L N H"],
    *,
    tile: Tile,
    interpret: bool,
) -> tuple[Float[Array, "B L M H"], Float[Array, "B L M H"]]:
    """The gradients of keys and values, summed over the query heads of each."""
    shape = _shape(query, key, interpret)
    of_queries = spans.of_queries(document_ids, query_tile=tile.queries, key_tile=tile.keys)
    return _call(
        functools.partial(_d_key_value_kernel, tile=tile, shape=shape),
        (of_queries, document_ids, query, key, value, log_sums, deltas, d_out),
        out_shape=(varying.shape_like(key.shape, key), varying.shape_like(value.shape, value)),
        grid=(shape.num_kv_heads, of_queries.shape[1], query.shape[0]),
        tile=tile,
        interpret=interpret,
        name="flash_d_key_value",
    )


def _shape(query: Array, key: Array, interpret: bool) -> _Shape:
    _, length, num_heads, head_dim = query.shape
    return _Shape(length, num_heads, key.shape[2], head_dim, interpret)


def _call(
    kernel: Any, arguments: tuple[Array, ...], *, out_shape: Any, tile: Tile, **settings: Any
) -> Any:
    whole = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        kernel,
        out_shape=out_shape,
        in_specs=[whole] * len(arguments),
        out_specs=(whole,) * len(out_shape),
        compiler_params=plt.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages),
        **settings,
    )(*arguments)


def _forward_kernel(
    spans_ref: Any,
    ids_ref: Any,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    out_ref: Any,
    log_sums_ref: Any,
    *,
    tile: Tile,
    shape: _Shape,
) -> None:
    head, sequence = pl.program_id(0), pl.program_id(2)
    # The last queries see most: their programs start first, those of few steps fill the end.
    index = pl.num_programs(1) - 1 - pl.program_id(1)
    kv_head = jax.lax.div(head, jnp.int32(shape.num_heads // shape.num_kv_heads))
    rows = _Rows(index, tile.queries, shape.length)
    q = rows.load(query_ref, sequence, head)
    ids = rows.load_one(ids_ref, sequence)

    def step(number: Array, carry: tuple, is_masked: bool) -> tuple:
        total, weight_sum, greatest = carry
        columns = _Rows(number, tile.keys, shape.length)
        k = columns.load(key_ref, sequence, kv_head, is_whole=not is_masked)
        v = columns.load(value_ref, sequence, kv_head, is_whole=not is_masked)
        logits = _dot(q, k.T)
        if is_masked:
            column_ids = columns.load_one(ids_ref, sequence)
            is_own = (ids[:, None] == column_ids[None, :]) & (ids[:, None] != 0)
            is_past = rows.position[:, None] >= columns.position[None, :]
            logits = jnp.where(is_own & is_past, logits, softmax_parts.MASKED_LOGIT)
        new = jnp.maximum(greatest, jnp.max(logits, axis=1) * shape.scale)
        weights = _exp2(logits * shape.scale - new[:, None], shape)
        shrink = _exp2(greatest - new, shape)
        weight_sum = weight_sum * shrink + jnp.sum(weights, axis=1)
        total = total * shrink[:, None] + _dot(weights.astype(v.dtype), v)
        return total, weight_sum, new

    nothing = (
        jnp.zeros((tile.queries, shape.head_dim), jnp.float32),
        jnp.zeros((tile.queries,), jnp.float32),
        jnp.full((tile.queries,), softmax_parts.MAX_FLOOR, jnp.float32),
    )
    total, weight_sum, greatest = _loops(spans_ref, sequence, index, step, nothing)
    # Padding has no weights.
    divisor = jnp.where(weight_sum > 0.0, weight_sum, 1.0)
    log_sums = jnp.where(weight_sum > 0.0, greatest + jnp.log2(divisor), 0.0)
    rows.store(out_ref, sequence, head, total * (1.0 / divisor)[:, None])
    rows.store_one(log_sums_ref, sequence, head, log_sums)


def _d_query_kernel(
    spans_ref: Any,
    ids_ref: Any,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    out_ref: Any,
    log_sums_ref: Any,
    d_out_ref: Any,
    d_query_ref: Any,
    deltas_ref: Any,
    *,
    tile: Tile,
    shape: _Shape,
) -> None:
    head, sequence = pl.program_id(0), pl.program_id(2)
    index = pl.num_programs(1) - 1 - pl.program_id(1)
    kv_head = jax.lax.div(head, jnp.int32(shape.num_heads // shape.num_kv_heads))
    rows = _Rows(index, tile.queries, shape.length)
    q, d_out = (rows.load(ref, sequence, head) for ref in (query_ref, d_out_ref))
    out = rows.load(out_ref, sequence, head)
    ids = rows.load_one(ids_ref, sequence)
    log_sums = rows.load_one(log_sums_ref, sequence, head)
    deltas = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=1)
    rows.store_one(deltas_ref, sequence, head, deltas)

    def step(number: Array, total: Array, is_masked: bool) -> Array:
        columns = _Rows(number, tile.keys, shape.length)
        k = columns.load(key_ref, sequence, kv_head, is_whole=not is_masked)
        v = columns.load(value_ref, sequence, kv_head, is_whole=not is_masked)
        logits = _dot(q, k.T)
        if is_masked:
            column_ids = columns.load_one(ids_ref, sequence)
            is_own = (ids[:, None] == column_ids[None, :]) & (ids[:, None] != 0)
            is_past = rows.position[:, None] >= columns.position[None, :]
            logits = jnp.where(is_own & is_past, logits, softmax_parts.MASKED_LOGIT)
        weights = _exp2(logits * shape.scale - log_sums[:, None], shape)
        d_logits = weights * (_dot(d_out, v.T) - deltas[:, None])
        return total + _dot(d_logits.astype(k.dtype), k)

    total = jnp.zeros((tile.queries, shape.head_dim), jnp.float32)
    total = _loops(spans_ref, sequence, index, step, total)
    rows.store(d_query_ref, sequence, head, total * shape.head_dim**-0.5)


def _d_key_value_kernel(
    spans_ref: Any,
    ids_ref: Any,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    log_sums_ref: Any,
    deltas_ref: Any,
    d_out_ref: Any,
    d_key_ref: Any,
    d_value_ref: Any,
    *,
    tile: Tile,
    shape: _Shape,
) -> None:
    kv_head, index, sequence = (pl.program_id(axis) for axis in range(3))
    num_in_group = shape.num_heads // shape.num_kv_heads
    columns = _Rows(index, tile.keys, shape.length)
    k, v = (columns.load(ref, sequence, kv_head) for ref in (key_ref, value_ref))
    column_ids = columns.load_one(ids_ref, sequence)

    def add_head(within: Array, totals: tuple) -> tuple:
        head = kv_head * num_in_group + within

        # Logits stand here as [keys, queries], so that weights need no transposing.
        def step(number: Array, totals: tuple, is_masked: bool) -> tuple:
            rows = _Rows(number, tile.queries, shape.length)
            q = rows.load(query_ref, sequence, head, is_whole=not is_masked)
            d_out = rows.load(d_out_ref, sequence, head, is_whole=not is_masked)
            log_sums = rows.load_one(log_sums_ref, sequence, head, is_whole=not is_masked)
            deltas = rows.load_one(deltas_ref, sequence, head, is_whole=not is_masked)
            logits = _dot(k, q.T)
            if is_masked:
                ids = rows.load_one(ids_ref, sequence)
                is_own = (column_ids[:, None] == ids[None, :]) & (ids[None, :] != 0)
                is_past = columns.position[:, None] <= rows.position[None, :]
                logits = jnp.where(is_own & is_past, logits, softmax_parts.MASKED_LOGIT)
            weights = _exp2(logits * shape.scale - log_sums[None, :], shape)
            d_logits = weights * (_dot(v, d_out.T) - deltas[None, :])
            d_value = totals[1] + _dot(weights.astype(d_out.dtype), d_out)
            return totals[0] + _dot(d_logits.astype(q.dtype), q), d_value

        return _loops(spans_ref, sequence, index, step, totals)

    zeros = jnp.zeros((tile.keys, shape.head_dim), jnp.float32)
    totals = jax.lax.fori_loop(jnp.int32(0), jnp.int32(num_in_group), add_head, (zeros, zeros))
    columns.store(d_key_ref, sequence, kv_head, totals[0] * shape.head_dim**-0.5)
    columns.store(d_value_ref, sequence, kv_head, totals[1])


class _Rows:
    """Consecutive rows of a tile: tokens of one sequence and head. Those past the end are zero."""

    def __init__(self, number: Array, size: int, length: int) -> None:
        """Tile `number` of tiles of `size` rows, of which there are `length`."""
        self.position = number * size + jnp.arange(size, dtype=jnp.int32)
        self._slice = pl.ds(number * size, size)
        self._is_inside = self.position < length if length % size else None

    def load(self, ref: Any, sequence: Array, head: Array, *, is_whole: bool = False) -> Array:
        """[size, H] of [B, L, heads, H]; `is_whole` if no row is past the end."""
        inside = None if is_whole or self._is_inside is None else self._is_inside[:, None]
        return _load(ref.at[sequence, self._slice, head, :], inside)

    def load_one(self, ref: Any, *place: Array, is_whole: bool = False) -> Array:
        """[size] of the last axis of an array."""
        return _load(ref.at[(*place, self._slice)], None if is_whole else self._is_inside)

    def store(self, ref: Any, sequence: Array, head: Array, x: Array) -> None:
        """Writes what `load` reads, in the dtype that is there."""
        inside = None if self._is_inside is None else self._is_inside[:, None]
        plt.store(ref.at[sequence, self._slice, head, :], x.astype(ref.dtype), mask=inside)

    def store_one(self, ref: Any, sequence: Array, head: Array, x: Array) -> None:
        """Writes what `load_one` reads."""
        plt.store(ref.at[sequence, head, self._slice], x, mask=self._is_inside)


def _load(ref: Any, inside: Array | None) -> Array:
    return plt.load(ref) if inside is None else plt.load(ref, mask=inside, other=0)


def _loops(spans_ref: Any, sequence: Array, index: Array, step: Any, carry: Any) -> Any:
    """step(number of a tile, carry, is masked) over the tiles of a span, whole ones first."""
    span = [spans_ref[sequence, index, place] for place in range(4)]
    first, whole_start = span[spans.FIRST], span[spans.WHOLE_START]
    whole_stop, stop = span[spans.WHOLE_STOP], span[spans.STOP]
    num_before = whole_start - first

    def masked_step(i: Array, carry: Any) -> Any:
        return step(i + jnp.where(i < num_before, first, whole_stop - num_before), carry, True)

    carry = jax.lax.fori_loop(whole_start, whole_stop, lambda i, x: step(i, x, False), carry)
    num_masked = num_before + stop - whole_stop
    return jax.lax.fori_loop(jnp.int32(0), num_masked, masked_step, carry)


def _dot(x: Array, y: Array) -> Array:
    """The product, summed in float32; float32 arguments are not rounded to TF32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.dot(x, y, precision=precision, preferred_element_type=jnp.float32)


def _exp2(x: Array, shape: _Shape) -> Array:
    """2^x in float32 as the one instruction that a GPU has, with 0 for what is below 2^-126."""
    if shape.interpret:
        return jnp.exp2(x)
    (power,) = plt.elementwise_inline_asm(
        "ex2.approx.ftz.f32 $0, $1;",
        args=[x],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return power
