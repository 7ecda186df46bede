"""Routed SwiGLU experts of few tokens, as in decoding: two kernels for NVIDIA GPUs. Floor 1.

    y_t = sum over k of (w_tk silu(x_t gate_e) * (x_t up_e)) down_e,  e = ids_tk

arXiv:2002.05202, eq. 5 without biases. So few tokens wait for the matrices of the experts that they
chose, each of which is read once, and for whatever is started before: nothing is sorted, and no row
is copied. A program multiplies all tokens, which fill a tile no more than those of one expert
would, with some columns of one expert's matrix, and stores what was asked for. Axes: T tokens,
P places of a tile for them, K experts of a token, E experts, S parts of a sum, D model,
F expert hidden.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped import tiles, triton

# More tokens would take more than one tile, each of which would read the matrices again.
MOST_TOKENS = 64
# Numbers that tensor cores multiply exactly: all tokens times every chosen expert cost no time.
_DTYPES = (jnp.bfloat16, jnp.float16)
_FEWEST_PLACES = 16
# Columns of tiles of the hidden layer and of answers, and their depths, the best first: measured
# on an H200 at 1, 8 and 64 tokens (docs/log.md).
_HIDDEN_SIDES, _ANSWER_SIDES, _DEPTHS = (64, 32, 16), (128, 64, 32, 16), (64, 32, 16)
_PARTS = (4, 2, 1)


class _Tile(NamedTuple):
    """Columns and depth of a step, and the parts of a sum that programs of their own make."""

    columns: int
    depth: int
    num_parts: int


class _Mine(NamedTuple):
    """The expert of a program, the places that chose it, and as which of their choices."""

    expert: Int[Array, ""]
    is_mine: Bool[Array, " P"]
    choice: Int[Array, " P"]


def are_few(*, num_tokens: int, dtype: Any) -> bool:
    """Whether this is the way for so many tokens.

    Float32 is multiplied without tensor cores, where what nobody asked for costs more than reading
    a matrix twice: on an H200, sides of 1024 x 2048, 64 tokens take 42 ms here and 0.9 sorted.
    """
    return num_tokens <= MOST_TOKENS and dtype in _DTYPES


def routed_swiglu(
    tokens: Float[Array, "T D"],
    expert_ids: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    *,
    interpret: bool,
) -> Float[Array, "T D"]:
    """The weighted answers of each token's experts; neither checked nor differentiable.

    Args:
      tokens: [T, D], bfloat16 or float16, interpreted also float32; T from 1 to `MOST_TOKENS`.
      expert_ids: [T, K] int32 in [0, E], distinct in a row but for E, which is no assignment;
        of an expert that stands twice in a row one answer is whatever memory held.
      weights: [T, K] float32, of the assignments.
      gate: [E, D, F] in the dtype of `tokens`; D and F multiples of 16.
      up: [E, D, F] same dtype.
      down: [E, F, D] same dtype.
      interpret: runs the kernels step by step, on any device; for tests.

    Returns:
      [T, D] in the dtype of `tokens`, sums in float32; zero for a token without an expert. The
      hidden layer, weight included, is taken in float32 and rounded once.

    Cost: the bytes of the matrices of every expert that any token chose, and 6 P D F FLOPs for
    each such expert.
    """
    arguments = (tokens, expert_ids, weights, gate, up, down)
    tokens, expert_ids, weights, gate, up, down = (varying.like(x, *arguments) for x in arguments)
    num_tokens, top_k = expert_ids.shape
    num_experts, model_dim, width = gate.shape
    num_places = max(_FEWEST_PLACES, pl.next_power_of_2(num_tokens))
    missing = ((0, 0), (0, num_places - num_tokens))
    ids = jnp.pad(expert_ids.astype(jnp.int32).T, missing, constant_values=num_experts)
    shares = jnp.pad(weights.T, missing)
    columns, depth = (tiles.largest_divisor(width, sides) for sides in (_HIDDEN_SIDES, _DEPTHS))
    inner = _Tile(columns, tiles.largest_divisor(model_dim, _DEPTHS), 1)
    columns = tiles.largest_divisor(model_dim, _ANSWER_SIDES)
    outer = _Tile(columns, depth, tiles.largest_divisor(width // depth, _PARTS))
    num_programs = min(num_experts, num_tokens * top_k)
    call = functools.partial(_call, num_tokens=num_tokens, interpret=interpret)
    hidden = call(
        _few_hidden,
        (ids, shares, tokens, gate, up),
        grid=(width // inner.columns, 1, num_programs),
        out_shape=varying.shape_like((top_k, num_places, width), tokens),
        tile=inner,
    )
    num_layers = outer.num_parts * top_k
    answers = call(
        _few_answers,
        (ids, hidden, down),
        grid=(model_dim // outer.columns, outer.num_parts, num_programs),
        out_shape=varying.shape_like((num_layers, num_places, model_dim), tokens, jnp.float32),
        tile=outer,
    )
    # What has no expert was not written.
    is_there = jnp.tile(ids < num_experts, (outer.num_parts, 1))[:, :, None]
    total = jnp.sum(jnp.where(is_there, answers, 0.0), axis=0)
    return total[:num_tokens].astype(tokens.dtype)


def _call(
    kernel: Any,
    arguments: tuple[Array, ...],
    *,
    grid: tuple[int, ...],
    out_shape: jax.ShapeDtypeStruct,
    tile: _Tile,
    num_tokens: int,
    interpret: bool,
) -> Array:
    whole = pl.BlockSpec(memory_space=pl.ANY)
    made: Array = pl.pallas_call(
        functools.partial(kernel, tile=tile, num_tokens=num_tokens),
        out_shape=out_shape,
        grid=grid,
        in_specs=[whole] * len(arguments),
        out_specs=whole,
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=4),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*arguments)
    return made


def _few_hidden(
    ids_ref: Any,
    shares_ref: Any,
    tokens_ref: Any,
    gate_ref: Any,
    up_ref: Any,
    hidden_ref: Any,
    *,
    tile: _Tile,
    num_tokens: int,
) -> None:
    """The hidden layer, weighted, of [K, P, F], for the choices of one expert."""
    num_experts, model_dim, _ = gate_ref.shape
    (top_k, num_places), columns = ids_ref.shape, _columns(tile)
    mine = _mine(ids_ref, num_tokens=num_tokens, num_experts=num_experts)

    @pl.when(_any(mine.is_mine))
    def compute() -> None:
        # Of places without a token nothing is stored, so they may hold any.
        token = jnp.minimum(jnp.arange(num_places, dtype=jnp.int32), num_tokens - 1)

        def step(i: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
            inner = pl.ds(i * tile.depth, tile.depth)
            x = plt.load(tokens_ref.at[triton.indices(token, inner)])
            gates, ups = totals
            return (
                gates + triton.dot(x, plt.load(gate_ref.at[mine.expert, inner, columns])),
                ups + triton.dot(x, plt.load(up_ref.at[mine.expert, inner, columns])),
            )

        zeros = jnp.zeros((num_places, tile.columns), jnp.float32)
        num_steps = jnp.int32(model_dim // tile.depth)
        gates, ups = jax.lax.fori_loop(jnp.int32(0), num_steps, step, (zeros, zeros))
        share = jnp.zeros((num_places,), jnp.float32)
        for k in range(top_k):
            share = jnp.where(mine.choice == k, plt.load(shares_ref.at[jnp.int32(k), :]), share)
        hidden = share[:, None] * (jax.nn.silu(gates) * ups)
        own = _own_rows(hidden_ref, mine.choice, columns)
        plt.store(own, hidden.astype(hidden_ref.dtype), mask=mine.is_mine[:, None])


def _few_answers(
    ids_ref: Any, hidden_ref: Any, down_ref: Any, answers_ref: Any, *, tile: _Tile, num_tokens: int
) -> None:
    """The hidden layer times down, of [S K, P, D], for the choices of one expert, in parts."""
    num_experts, width, _ = down_ref.shape
    (top_k, num_places), columns = ids_ref.shape, _columns(tile)
    mine = _mine(ids_ref, num_tokens=num_tokens, num_experts=num_experts)
    part, num_steps = pl.program_id(1), width // tile.num_parts // tile.depth

    @pl.when(_any(mine.is_mine))
    def compute() -> None:
        is_mine = mine.is_mine[:, None]

        def step(i: Array, total: Array) -> Array:
            inner = pl.ds((part * num_steps + i) * tile.depth, tile.depth)
            x = plt.load(_own_rows(hidden_ref, mine.choice, inner), mask=is_mine, other=0)
            return total + triton.dot(x, plt.load(down_ref.at[mine.expert, inner, columns]))

        zeros = jnp.zeros((num_places, tile.columns), jnp.float32)
        total = jax.lax.fori_loop(jnp.int32(0), jnp.int32(num_steps), step, zeros)
        own = _own_rows(answers_ref, part * top_k + mine.choice, columns)
        plt.store(own, total, mask=is_mine)


def _mine(ids_ref: Any, *, num_tokens: int, num_experts: int) -> _Mine:
    """There is a program for each expert, or, where there are fewer, for each assignment.

    The first assignment to an expert has all of its tokens; later ones have none.
    """
    (top_k, num_places), program = ids_ref.shape, pl.program_id(2)
    place = jnp.arange(num_places, dtype=jnp.int32)
    choices = [plt.load(ids_ref.at[jnp.int32(k), :]) for k in range(top_k)]
    expert = program
    if num_tokens * top_k < num_experts:
        expert = plt.load(ids_ref.at[program // num_tokens, program % num_tokens])
        is_repeated = jnp.zeros((num_places,), bool)
        for k, ids in enumerate(choices):
            is_repeated |= (ids == expert) & (k * num_tokens + place < program)
        expert = jnp.where(_any(is_repeated), num_experts, expert)
    choice = jnp.zeros((num_places,), jnp.int32)
    is_mine = jnp.zeros((num_places,), bool)
    for k, ids in enumerate(choices):
        choice = jnp.where(ids == expert, jnp.int32(k), choice)
        is_mine |= (ids == expert) & (expert < num_experts)
    return _Mine(jnp.minimum(expert, num_experts - 1), is_mine, choice)


def _any(mask: Bool[Array, " P"]) -> Array:
    """In integers, which Triton can reduce."""
    return jnp.max(mask.astype(jnp.int32)) > 0


def _own_rows(reference: Any, layer: Int[Array, " P"], columns: Any) -> Any:
    """Of [.., P, columns] each place's row in a layer of its own."""
    place, column = triton.indices(jnp.arange(reference.shape[1], dtype=jnp.int32), columns)
    return reference.at[jnp.broadcast_to(layer[:, None], place.shape), place, column]


def _columns(tile: _Tile) -> Any:
    return pl.ds(pl.program_id(0) * tile.columns, tile.columns)
