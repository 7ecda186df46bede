"""The pipeline that all kernels for Hopper are: tiles of the result, summed over blocks. Floor 1.

One program a multiprocessor walks over its tiles. Of its three warp groups one only loads: a block
of both arguments at a time into a ring in shared memory, as far ahead as the ring is long and
beyond the end of a tile. Two multiply, each half of a tile's rows, with sums in registers, and
store it a piece at a time while the next tile is being loaded.
"""

import functools
from collections.abc import Callable, Sequence
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


Read = Callable[[int], tuple[Any, Callable[[], None]]]


class Work(NamedTuple):
    """What a kernel does, as functions of one of its tiles; a tile is a tree of scalars.

    Attributes:
      num_tiles: () -> how many the program has.
      first: () -> its first tile.
      following: (tile) -> its next tile.
      num_blocks: (tile) -> blocks of each source that are summed up.
      is_idle: (tile, worker) -> whether nothing of that worker's half is stored, so that it only
        passes blocks on.
      blocks: of each source, one summed up after the other: (tile, j) -> the references of x for
        each worker, and of y for each part of a tile, of its j-th block.
      prepare: (tile, j, x) -> changes a worker's x in shared memory before it is multiplied.
      store: (tile, parts, each [HALF, width of a part], read) -> stores a worker's half of the
        tile. `read` is (number) -> the y of one of `reads`, once it is there, and a function that
        must be called when it has been read.
      reads: of each block that `store` reads behind those that are summed: (tile) -> references
        that fill its y, one below the other, fewer than it has arrivals.
    """

    num_tiles: Callable[[], Array]
    first: Callable[[], Any]
    following: Callable[[Any], Any]
    num_blocks: Callable[[Any], Any]
    is_idle: Callable[[Any, Array], Any]
    blocks: Sequence[Callable[[Any, Array], tuple[list[Any], list[Any]]]]
    prepare: Callable[[Any, Array, Any], None]
    store: Callable[[Any, list[Array], Read], None]
    reads: Sequence[Callable[[Any], list[Any]]] = ()


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
    results: Sequence[jax.ShapeDtypeStruct],
    buffers: dict[str, Any],
    width: int,
    num_parts: int = 1,
    transposed: tuple[bool, bool],
    interpret: bool,
) -> list[Array]:
    """Runs a kernel.

    Args:
      make_work: (references of the arguments and of the results; program, num_programs, worker and
        the buffers by name) -> what it does.
      arguments: arrays; the last is of the dtype of what is multiplied, and says what the results
        vary over.
      results: their shapes and dtypes, from `varying.shape_like` of the last argument.
      buffers: memory of a program, by name, in which it lays what it stores.
      width: columns of a tile.
      num_parts: equal parts of a tile's columns, each with a y of its own.
      transposed: whether a worker's block of x is [DEPTH, HALF] and not [HALF, DEPTH], and a block
        of y [columns of a part, DEPTH] and not [DEPTH, columns of a part].
      interpret: runs it thread by thread, on any device.

    Raises:
      NotImplementedError: from `limits.interpreter`.
    """
    like = arguments[-1]
    stages = _NUM_STAGES[width]
    num_programs = _NUM_INTERPRETED if interpret else _NUM_MULTIPROCESSORS
    x_block = (DEPTH, HALF) if transposed[0] else (HALF, DEPTH)
    part = width // num_parts
    y_block = (part, DEPTH) if transposed[1] else (DEPTH, part)
    kernel = plgpu.kernel(
        functools.partial(
            _kernel,
            make_work=make_work,
            num_programs=num_programs,
            transposed=transposed,
            # JAX refuses a warp's own code over references that vary over a mesh.
            one_warp=not any(varying.is_varying(each) for each in arguments),
        ),
        out_type=list(results),
        scratch_types=dict(
            x_ring=plgpu.SMEM(
                (stages, NUM_WORKERS, *x_block), like.dtype, transforms=swizzled(x_block[1])
            ),
            y_ring=plgpu.SMEM(
                (stages, num_parts, *y_block), like.dtype, transforms=swizzled(DEPTH)
            ),
            is_loaded=plgpu.Barrier(num_arrivals=NUM_WORKERS + num_parts, num_barriers=stages),
            is_free=plgpu.Barrier(num_arrivals=NUM_WORKERS, num_barriers=stages),
            **buffers,
        ),
        grid=(num_programs,),
        grid_names=("program",),
        num_threads=1 + NUM_WORKERS,
        thread_name="warp_group",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
            approx_math=True,  # what is made of sums here is rounded to 16 bits
        ),
        **({"interpret": limits.interpreter()} if interpret else {}),
    )
    # Mosaic GPU does not say that its results vary as their arguments do.
    return [varying.like(out, like) for out in kernel(*arguments)]


def _kernel(
    *references: Any,
    x_ring: Any,
    y_ring: Any,
    is_loaded: Any,
    is_free: Any,
    make_work: Callable[..., Work],
    num_programs: int,
    transposed: tuple[bool, bool],
    one_warp: bool,
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
        _load(work, ring, one_warp)

    @pl.when(warp_group < NUM_WORKERS)
    def multiply() -> None:
        plgpu.set_max_registers(_WORKER_REGISTERS, action="increase")
        _multiply(work, ring, warp_group, transposed)


def _load(work: Work, ring: Ring, one_warp: bool) -> None:
    """Fills the ring with the blocks of all tiles, one after the other.

    With `one_warp` by one warp of four: waiting takes power, of which there is too little
    (docs/log.md).
    """

    def block(blocks: Callable[..., Any], tile: Any, j: Array, step: Array) -> Array:
        slot = _free_slot(ring, step)
        xs, ys = blocks(tile, j)
        for worker, x in enumerate(xs):
            plgpu.copy_gmem_to_smem(x, ring.x.at[slot, worker], ring.is_loaded.at[slot])
        for part, y in enumerate(ys):
            plgpu.copy_gmem_to_smem(y, ring.y.at[slot, part], ring.is_loaded.at[slot])
        return step + 1

    def all_blocks(_: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        tile, first_step = carry
        num_blocks = work.num_blocks(tile)

        def load_tile() -> None:
            step = first_step
            for blocks in work.blocks:
                load_block = functools.partial(block, blocks, tile)
                step = jax.lax.fori_loop(0, num_blocks, load_block, step)
            for number, read in enumerate(work.reads):
                _load_read(ring, _free_slot(ring, step + number), read(tile))

        # Not the walk over tiles: its loops have conditions of their own, which a warp's cannot.
        if one_warp:
            plgpu.warp_map(lambda warp: pl.when(warp == 0)(load_tile))
        else:
            load_tile()
        return work.following(tile), first_step + _all_blocks(work, tile) + len(work.reads)

    jax.lax.fori_loop(0, work.num_tiles(), all_blocks, (work.first(), jnp.int32(0)))


def _load_read(ring: Ring, slot: Array, references: list[Any]) -> None:
    """Fills the y of a slot with references, one below the other; its x is left."""
    begin = 0
    for reference in references:
        rows = pl.ds(begin, reference.shape[0])
        plgpu.copy_gmem_to_smem(reference, ring.y.at[slot, 0, rows], ring.is_loaded.at[slot])
        begin += reference.shape[0]
    for _ in range(NUM_WORKERS + 1 - len(references)):
        plgpu.barrier_arrive(ring.is_loaded.at[slot])


def _free_slot(ring: Ring, step: Array) -> Array:
    """The slot of a step, once all workers have read what it had."""
    num_stages = ring.x.shape[0]
    slot = _slot(step, num_stages)

    @pl.when(step >= num_stages)
    def _() -> None:
        plgpu.barrier_wait(ring.is_free.at[slot])

    return slot


def _multiply(work: Work, ring: Ring, worker: Array, transposed: tuple[bool, bool]) -> None:
    """Sums the blocks of each tile, and stores this worker's half of it."""
    num_parts, columns = ring.y.shape[1], ring.y.shape[2 if transposed[1] else 3]

    def all_blocks(_: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        tile, step = carry
        totals = pl.run_scoped(
            functools.partial(_summed, work, ring, worker, tile, step, transposed),
            *[plgpu.ACC((HALF, columns), jnp.float32)] * num_parts,
        )
        step += _all_blocks(work, tile)
        parts = [total.astype(ring.x.dtype) for total in totals]
        work.store(tile, parts, functools.partial(_read, ring, step))
        return work.following(tile), step + len(work.reads)

    jax.lax.fori_loop(0, work.num_tiles(), all_blocks, (work.first(), jnp.int32(0)))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _read(ring: Ring, step: Array, number: int) -> tuple[Any, Callable[[], None]]:
    """A block's y, once it is loaded, and what hands its slot back."""
    slot = _slot(step + number, ring.x.shape[0])
    plgpu.barrier_wait(ring.is_loaded.at[slot])
    return ring.y.at[slot, 0], lambda: plgpu.barrier_arrive(ring.is_free.at[slot])


def _summed(
    work: Work,
    ring: Ring,
    worker: Array,
    tile: Any,
    step: Array,
    transposed: tuple[bool, bool],
    *totals: Any,
) -> tuple[Array, ...]:
    """The sums over a tile's blocks; hands each slot of the ring back when it is read."""
    num_stages = ring.x.shape[0]
    is_idle = work.is_idle(tile, worker)
    num_blocks = jnp.where(is_idle, 0, _all_blocks(work, tile))

    def block(j: Array, step: Array) -> Array:
        slot = _slot(step, num_stages)
        plgpu.barrier_wait(ring.is_loaded.at[slot])
        x = ring.x.at[slot, worker]
        work.prepare(tile, j, x)
        x = x.transpose((1, 0)) if transposed[0] else x
        for part, total in enumerate(totals):
            y = ring.y.at[slot, part]
            plgpu.wgmma(total, x, y.transpose((1, 0)) if transposed[1] else y)
        # All multiplications but these are done, so that the slot before is free.
        plgpu.wgmma_wait(len(totals))

        @pl.when(j > 0)
        def _() -> None:
            plgpu.barrier_arrive(ring.is_free.at[_slot(step + num_stages - 1, num_stages)])

        return step + 1

    behind = jax.lax.fori_loop(0, num_blocks, block, step)
    plgpu.wgmma_wait(0)

    @pl.when(num_blocks > 0)
    def _() -> None:
        plgpu.barrier_arrive(ring.is_free.at[_slot(behind + num_stages - 1, num_stages)])

    def pass_on(_: Array, step: Array) -> Array:
        slot = _slot(step, num_stages)
        plgpu.barrier_wait(ring.is_loaded.at[slot])
        plgpu.barrier_arrive(ring.is_free.at[slot])
        return step + 1

    jax.lax.fori_loop(0, jnp.where(is_idle, _all_blocks(work, tile), 0), pass_on, step)
    return tuple(total[...] for total in totals)


def _all_blocks(work: Work, tile: Any) -> Any:
    return len(work.blocks) * work.num_blocks(tile)


def share(num_tiles: Any, program: Array, num_programs: int) -> Array:
    """Of tiles that go round among the programs, how many one of them has."""
    return jax.lax.div(num_tiles - program + num_programs - 1, jnp.int32(num_programs))


def _slot(step: Array, num_stages: int) -> Array:
    return jax.lax.rem(step, jnp.int32(num_stages))
