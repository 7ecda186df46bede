"""The pipeline that both kernels for Hopper are: tiles of the result, summed over blocks. Floor 1.

One program a multiprocessor walks over its tiles. Of its three warp groups one only loads: a block
of both arguments at a time into a ring in shared memory, as far ahead as the ring is long and
beyond the end of a tile. Two multiply, each half of a tile's rows, with sums in registers, and
store it a piece at a time while the next tile is being loaded.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped.hopper import limits

HALF = 64  # rows of a tile that a warp group multiplies: what its instruction takes
NUM_WORKERS = 2
HEIGHT = NUM_WORKERS * HALF
DEPTH = 64  # of a block
EIGHT = 8  # rows that a layout without bank conflicts keeps together
WIDTHS = (256, 128)
_NUM_STAGES = {256: 4, 128: 6}  # as many as fit beside what is stored
_NUM_MULTIPROCESSORS = 132  # of an H100 and of an H200
_NUM_INTERPRETED = 3  # programs, so that each has several tiles and none has all
_LOADER_REGISTERS, _WORKER_REGISTERS = 40, 232


class Work(NamedTuple):
    """What a kernel does, as functions of one of its tiles; a tile is a tree of scalars.

    Attributes:
      num_tiles: () -> how many the program has.
      first: () -> its first tile.
      following: (tile) -> its next tile.
      num_blocks: (tile) -> blocks that are summed up.
      blocks: (tile, j) -> the references of x for each worker and of y of its j-th block.
      prepare: (tile, j, x) -> changes a worker's x in shared memory before it is multiplied.
      store: (tile, numbers [HALF, width]) -> stores a worker's half of the tile.
    """

    num_tiles: Callable[[], Array]
    first: Callable[[], Any]
    following: Callable[[Any], Any]
    num_blocks: Callable[[Any], Any]
    blocks: Callable[[Any, Array], tuple[list[Any], Any]]
    prepare: Callable[[Any, Array, Any], None]
    store: Callable[[Any, Array], None]


class Ring(NamedTuple):
    """Blocks in shared memory, and the barriers that pass its slots on."""

    x: Any
    y: Any
    is_loaded: Any
    is_free: Any


def swizzled(columns: int) -> tuple[Any, ...]:
    """The layout of 16-bit numbers in shared memory that has no bank conflicts."""
    swizzle = plgpu.find_swizzle(16 * columns)
    return plgpu.TilingTransform((EIGHT, swizzle // 2)), plgpu.SwizzleTransform(swizzle)


def call(
    make_work: Callable[..., Work],
    *arguments: Array,
    shape: tuple[int, ...],
    buffers: dict[str, Any],
    width: int,
    transposed: tuple[bool, bool],
    interpret: bool,
) -> Array:
    """Runs a kernel.

    Args:
      make_work: (references of the arguments and of the result; program, num_programs, worker and
        the buffers by name) -> what it does.
      arguments: arrays; the last is of the result's dtype, and says what the result varies over.
      shape: of the result.
      buffers: memory of a program, by name, in which it lays what it stores.
      width: columns of a tile.
      transposed: whether a worker's block of x is [DEPTH, HALF] and not [HALF, DEPTH], and a block
        of y [width, DEPTH] and not [DEPTH, width].
      interpret: runs it thread by thread, on any device.

    Raises:
      NotImplementedError: from `limits.interpreter`.
    """
    like = arguments[-1]
    stages = _NUM_STAGES[width]
    num_programs = _NUM_INTERPRETED if interpret else _NUM_MULTIPROCESSORS
    x_block = (DEPTH, HALF) if transposed[0] else (HALF, DEPTH)
    y_block = (width, DEPTH) if transposed[1] else (DEPTH, width)
    kernel = plgpu.kernel(
        functools.partial(
            _kernel,
            make_work=make_work,
            width=width,
            num_programs=num_programs,
            transposed=transposed,
        ),
        out_type=varying.shape_like(shape, like),
        scratch_types=dict(
            x_ring=plgpu.SMEM(
                (stages, NUM_WORKERS, *x_block), like.dtype, transforms=swizzled(x_block[1])
            ),
            y_ring=plgpu.SMEM((stages, *y_block), like.dtype, transforms=swizzled(DEPTH)),
            is_loaded=plgpu.Barrier(num_arrivals=1 + NUM_WORKERS, num_barriers=stages),
            is_free=plgpu.Barrier(num_arrivals=NUM_WORKERS, num_barriers=stages),
            **buffers,
        ),
        grid=(num_programs,),
        grid_names=("program",),
        num_threads=1 + NUM_WORKERS,
        thread_name="warp_group",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
        **({"interpret": limits.interpreter()} if interpret else {}),
    )
    # Mosaic GPU does not say that its results vary as their arguments do.
    return varying.like(kernel(*arguments), like)


def _kernel(
    *references: Any,
    x_ring: Any,
    y_ring: Any,
    is_loaded: Any,
    is_free: Any,
    make_work: Callable[..., Work],
    width: int,
    num_programs: int,
    transposed: tuple[bool, bool],
    **buffers: Any,
) -> None:
    warp_group = jax.lax.axis_index("warp_group")
    program = jax.lax.axis_index("program").astype(jnp.int32)
    work = make_work(
        *references, program=program, num_programs=num_programs, worker=warp_group, **buffers
    )
    ring = Ring(x_ring, y_ring, is_loaded, is_free)

    @pl.when(warp_group == NUM_WORKERS)
    def load() -> None:
        plgpu.set_max_registers(_LOADER_REGISTERS, action="decrease")
        _load(work, ring)

    @pl.when(warp_group < NUM_WORKERS)
    def multiply() -> None:
        plgpu.set_max_registers(_WORKER_REGISTERS, action="increase")
        _multiply(work, ring, warp_group, width=width, transposed=transposed)


def _load(work: Work, ring: Ring) -> None:
    """Fills the ring with the blocks of all tiles, one after the other."""
    num_stages = ring.x.shape[0]

    def all_blocks(_: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        tile, step = carry

        def block(j: Array, step: Array) -> Array:
            slot = _slot(step, num_stages)

            @pl.when(step >= num_stages)
            def _() -> None:
                plgpu.barrier_wait(ring.is_free.at[slot])

            xs, y = work.blocks(tile, j)
            for worker, x in enumerate(xs):
                plgpu.copy_gmem_to_smem(x, ring.x.at[slot, worker], ring.is_loaded.at[slot])
            plgpu.copy_gmem_to_smem(y, ring.y.at[slot], ring.is_loaded.at[slot])
            return step + 1

        return work.following(tile), jax.lax.fori_loop(0, work.num_blocks(tile), block, step)

    jax.lax.fori_loop(0, work.num_tiles(), all_blocks, (work.first(), jnp.int32(0)))


def _multiply(
    work: Work, ring: Ring, worker: Array, *, width: int, transposed: tuple[bool, bool]
) -> None:
    """Sums the blocks of each tile, and stores this worker's half of it."""

    def all_blocks(_: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        tile, step = carry
        total = pl.run_scoped(
            functools.partial(_summed, work, ring, worker, tile, step, transposed),
            plgpu.ACC((HALF, width), jnp.float32),
        )
        work.store(tile, total.astype(ring.x.dtype))
        return work.following(tile), step + work.num_blocks(tile)

    jax.lax.fori_loop(0, work.num_tiles(), all_blocks, (work.first(), jnp.int32(0)))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _summed(
    work: Work,
    ring: Ring,
    worker: Array,
    tile: Any,
    step: Array,
    transposed: tuple[bool, bool],
    total: Any,
) -> Array:
    """The sum over a tile's blocks; hands each slot of the ring back when it is read."""
    num_stages = ring.x.shape[0]
    num_blocks = work.num_blocks(tile)

    def block(j: Array, step: Array) -> Array:
        slot = _slot(step, num_stages)
        plgpu.barrier_wait(ring.is_loaded.at[slot])
        x, y = ring.x.at[slot, worker], ring.y.at[slot]
        work.prepare(tile, j, x)
        x, y = (
            ref.transpose((1, 0)) if swapped else ref
            for ref, swapped in zip((x, y), transposed, strict=True)
        )
        plgpu.wgmma(total, x, y)
        # All multiplications but this one are done, so that the slot before is free.
        plgpu.wgmma_wait(1)

        @pl.when(j > 0)
        def _() -> None:
            plgpu.barrier_arrive(ring.is_free.at[_slot(step + num_stages - 1, num_stages)])

        return step + 1

    behind = jax.lax.fori_loop(0, num_blocks, block, step)
    plgpu.wgmma_wait(0)

    @pl.when(num_blocks > 0)
    def _() -> None:
        plgpu.barrier_arrive(ring.is_free.at[_slot(behind + num_stages - 1, num_stages)])

    summed: Array = total[...]
    return summed


def share(num_tiles: Any, program: Array, num_programs: int) -> Array:
    """Of tiles that go round among the programs, how many one of them has."""
    return jax.lax.div(num_tiles - program + num_programs - 1, jnp.int32(num_programs))


def _slot(step: Array, num_stages: int) -> Array:
    return jax.lax.rem(step, jnp.int32(num_stages))
