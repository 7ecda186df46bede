"""The gradient of grouped matrices as a Pallas kernel of Mosaic GPU: NVIDIA's Hopper. Floor 1.

One program a multiprocessor walks over the tiles of the result. Of its three warp groups one only
loads: the rows of both arguments, `_DEPTH` at a time, into a ring in shared memory, as far ahead
as the ring is long and beyond the end of a tile; two multiply, each half of a tile's rows, and
store it while the next is being loaded. Groups come in order of their size, so that programs that
run at the same time read the same rows and end together. Axes: R rows, E groups, In and Out of
the matrices.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped import tiles

_NUM_MULTIPROCESSORS = 132  # of an H100 and of an H200
_NUM_INTERPRETED = 3  # programs, so that each has several tiles and none has all
_NUM_WORKERS = 2
_HALF = 64  # rows of a tile that a warp group multiplies: what its instruction takes
_HEIGHT = _NUM_WORKERS * _HALF
_DEPTH = 64
_NUM_STAGES = 4
_WIDTHS = (256, 128)
_STORED = 64  # columns that are stored at a time
_LOADER_REGISTERS, _WORKER_REGISTERS = 40, 232


def refusal(*, num_rows: int, num_in: int, num_out: int, dtype: Any) -> str | None:
    """Why this backend can't do these shapes; None if it can."""
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"takes bfloat16 and float16, not {jnp.dtype(dtype).name}"
    if num_in % _HEIGHT or num_out % _HEIGHT:
        return f"takes matrices whose sides are multiples of 128, not {num_in} x {num_out}"
    if num_rows < _DEPTH:
        return f"takes {_DEPTH} rows or more, not {num_rows}"
    return None


def interpreter() -> Any:
    """What makes a CPU run the kernel, thread by thread: slow, for tests.

    Raises:
      NotImplementedError: this jax has none.
    """
    if jax.__version_info__ < (0, 12):
        raise NotImplementedError(
            f"jax {jax.__version__} has no interpreter of Mosaic GPU that can run this; 0.12 has"
        )
    # By name, since jax 0.10 has no such attribute.
    return getattr(plgpu, "InterpretGPUParams")()  # noqa: B009


def outer(
    rows: Float[Array, "R In"],
    d_out: Float[Array, "R Out"],
    group_sizes: Int[Array, " E"],
    *,
    interpret: bool,
) -> Float[Array, "E In Out"]:
    """The gradient of the matrices, d_W of `matmul`, summed in float32.

    Both arguments must be finite in all rows.
    At the edges of groups a row of `rows` that is another's is set to zero, and multiplied.

    Raises:
      NotImplementedError: from `interpreter`.
    """
    num_in, num_out, num_groups = rows.shape[1], d_out.shape[1], group_sizes.shape[0]
    width = tiles.largest_divisor(num_out, _WIDTHS)
    assert width is not None, refusal.__doc__
    ends = tiles.group_ends(group_sizes)
    starts = ends - group_sizes.astype(jnp.int32)
    order = tiles.largest_first(group_sizes)
    swizzled = _swizzled(_HALF)
    num_programs = _NUM_INTERPRETED if interpret else _NUM_MULTIPROCESSORS
    kernel = plgpu.kernel(
        functools.partial(_kernel, width=width, num_programs=num_programs),
        out_type=varying.shape_like((num_groups, num_in, num_out), rows),
        scratch_types=dict(
            x_ring=plgpu.SMEM(
                (_NUM_STAGES, _NUM_WORKERS, _DEPTH, _HALF), rows.dtype, transforms=swizzled
            ),
            y_ring=plgpu.SMEM((_NUM_STAGES, _DEPTH, width), rows.dtype, transforms=swizzled),
            stored=plgpu.SMEM(
                (_NUM_WORKERS, 2, _HALF, _STORED), rows.dtype, transforms=_swizzled(_STORED)
            ),
            is_loaded=plgpu.Barrier(num_arrivals=1 + _NUM_WORKERS, num_barriers=_NUM_STAGES),
            is_free=plgpu.Barrier(num_arrivals=_NUM_WORKERS, num_barriers=_NUM_STAGES),
        ),
        grid=(num_programs,),
        grid_names=("program",),
        num_threads=1 + _NUM_WORKERS,
        thread_name="warp_group",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
        **({"interpret": interpreter()} if interpret else {}),
    )
    # Mosaic GPU does not say that its results vary as their arguments do.
    return varying.like(kernel(order, starts, ends, rows, d_out), rows)


def _swizzled(columns: int) -> tuple[Any, ...]:
    """The layout of 16-bit numbers in shared memory that has no bank conflicts."""
    swizzle = plgpu.find_swizzle(16 * columns)
    return plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle)


class _Ring(NamedTuple):
    """Blocks of both arguments in shared memory, and the barriers that pass its slots on."""

    x: Any
    y: Any
    is_loaded: Any
    is_free: Any


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The tiles of one program, and the blocks of rows behind each.

    Attributes:
      order: [E] groups in the order in which they come.
      starts: [E] first row of each group.
      ends: [E] behind the last row of each group.
      tiles_down: of one matrix.
      tiles_across: of one matrix.
      program: which program this is.
      num_programs: how many there are.
    """

    order: Any
    starts: Any
    ends: Any
    tiles_down: int
    tiles_across: int
    program: Array
    num_programs: int

    def num_tiles(self) -> Array:
        total = self.order.shape[0] * self.tiles_down * self.tiles_across
        return (total - self.program + self.num_programs - 1) // self.num_programs

    def tile(self, i: Array) -> tuple[Array, Array, Array]:
        """Group, and place in its matrix, of the program's i-th tile."""
        number = self.program + i * self.num_programs
        num_places = jnp.int32(self.tiles_down * self.tiles_across)
        group = self.order[jax.lax.div(number, num_places)]
        place = jax.lax.rem(number, num_places)
        across = jnp.int32(self.tiles_across)
        return group, jax.lax.div(place, across), jax.lax.rem(place, across)

    def blocks(self, group: Array) -> tuple[Array, Array]:
        """The first block of `_DEPTH` rows that has a row of the group, and how many have one.

        Blocks begin at multiples of `_DEPTH`, as a copy into a swizzled layout must.
        """
        start, end = self.starts[group], self.ends[group]
        first = jax.lax.div(start, jnp.int32(_DEPTH))
        behind = jax.lax.div(end + _DEPTH - 1, jnp.int32(_DEPTH))
        return first, jnp.where(end > start, behind - first, 0)


def _kernel(
    order_ref: Any,
    start_ref: Any,
    end_ref: Any,
    rows_ref: Any,
    d_out_ref: Any,
    out_ref: Any,
    x_ring: Any,
    y_ring: Any,
    stored: Any,
    is_loaded: Any,
    is_free: Any,
    *,
    width: int,
    num_programs: int,
) -> None:
    _, num_in, num_out = out_ref.shape
    walk = _Walk(
        order_ref,
        start_ref,
        end_ref,
        num_in // _HEIGHT,
        num_out // width,
        jax.lax.axis_index("program"),
        num_programs,
    )
    ring = _Ring(x_ring, y_ring, is_loaded, is_free)
    warp_group = jax.lax.axis_index("warp_group")

    @pl.when(warp_group == _NUM_WORKERS)
    def load() -> None:
        plgpu.set_max_registers(_LOADER_REGISTERS, action="decrease")
        _load(walk, ring, rows_ref, d_out_ref, width=width)

    @pl.when(warp_group < _NUM_WORKERS)
    def multiply() -> None:
        plgpu.set_max_registers(_WORKER_REGISTERS, action="increase")
        _multiply(walk, ring, stored, out_ref, warp_group, width=width)


def _load(walk: _Walk, ring: _Ring, rows_ref: Any, d_out_ref: Any, *, width: int) -> None:
    """Fills the ring with the blocks of all tiles, one after the other."""

    def tile(i: Array, step: Array) -> Array:
        group, down, across = walk.tile(i)
        first, num_blocks = walk.blocks(group)

        def block(j: Array, step: Array) -> Array:
            slot = _slot(step)

            @pl.when(step >= _NUM_STAGES)
            def _() -> None:
                plgpu.barrier_wait(ring.is_free.at[slot])

            taken = pl.ds((first + j) * _DEPTH, _DEPTH)
            for worker in range(_NUM_WORKERS):
                columns = pl.ds(down * _HEIGHT + worker * _HALF, _HALF)
                plgpu.copy_gmem_to_smem(
                    rows_ref.at[taken, columns], ring.x.at[slot, worker], ring.is_loaded.at[slot]
                )
            columns = pl.ds(across * width, width)
            plgpu.copy_gmem_to_smem(
                d_out_ref.at[taken, columns], ring.y.at[slot], ring.is_loaded.at[slot]
            )
            return step + 1

        return jax.lax.fori_loop(0, num_blocks, block, step)

    jax.lax.fori_loop(0, walk.num_tiles(), tile, jnp.int32(0))


def _multiply(
    walk: _Walk, ring: _Ring, stored: Any, out_ref: Any, worker: Array, *, width: int
) -> None:
    """Sums the blocks of each tile and stores this warp group's half of it."""

    def tile(i: Array, step: Array) -> Array:
        group, down, across = walk.tile(i)
        num_blocks = walk.blocks(group)[1]
        total = pl.run_scoped(
            functools.partial(_summed, walk, ring, worker, group, step),
            plgpu.ACC((_HALF, width), jnp.float32),
        ).astype(out_ref.dtype)
        row = down * _HEIGHT + worker * _HALF
        for number in range(width // _STORED):
            buffer = stored.at[worker, number % 2]
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            buffer[...] = total[:, number * _STORED : (number + 1) * _STORED]
            plgpu.commit_smem()
            columns = pl.ds(across * width + number * _STORED, _STORED)
            plgpu.copy_smem_to_gmem(buffer, out_ref.at[group, pl.ds(row, _HALF), columns])
        return step + num_blocks

    jax.lax.fori_loop(0, walk.num_tiles(), tile, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _summed(
    walk: _Walk, ring: _Ring, worker: Array, group: Array, step: Array, total: Any
) -> Array:
    """The sum over the blocks of a group; hands each slot of the ring back when it is read."""
    first, num_blocks = walk.blocks(group)

    def block(j: Array, step: Array) -> Array:
        slot = _slot(step)
        plgpu.barrier_wait(ring.is_loaded.at[slot])
        x = ring.x.at[slot, worker]
        low = (first + j) * _DEPTH
        _keep_rows(x, walk.starts[group] - low, walk.ends[group] - low)
        plgpu.wgmma(total, x.transpose((1, 0)), ring.y.at[slot])
        # All multiplications but this one are done, so that the slot before is free.
        plgpu.wgmma_wait(1)

        @pl.when(j > 0)
        def _() -> None:
            plgpu.barrier_arrive(ring.is_free.at[_slot(step + _NUM_STAGES - 1)])

        return step + 1

    behind = jax.lax.fori_loop(0, num_blocks, block, step)
    plgpu.wgmma_wait(0)

    @pl.when(num_blocks > 0)
    def _() -> None:
        plgpu.barrier_arrive(ring.is_free.at[_slot(behind + _NUM_STAGES - 1)])

    summed: Array = total[...]
    return summed


def _slot(step: Array) -> Array:
    return jax.lax.rem(step, jnp.int32(_NUM_STAGES))


def _keep_rows(x: Any, start: Array, end: Array) -> None:
    """Sets the rows of a block that are outside [start, end), another group's, to zero."""

    @pl.when((start > 0) | (end < _DEPTH))
    def _() -> None:
        row = plgpu.layout_cast(
            jax.lax.broadcasted_iota(jnp.int32, (_DEPTH, _HALF), 0), plgpu.Layout.WGMMA
        )
        is_mine = (row >= start) & (row < end)
        x[...] = jnp.where(is_mine, x[...], jnp.zeros((), x.dtype))
        plgpu.commit_smem()
