"""What the kernels for Hopper can do, and what stands in for the card in tests. Floor 1."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

_SIDE = 128


def refusal(*, num_rows: int, num_in: int, num_out: int, dtype: Any) -> str | None:
    """Why this backend can't do these shapes; None if it can."""
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"takes bfloat16 and float16, not {jnp.dtype(dtype).name}"
    if num_in % _SIDE or num_out % _SIDE:
        return f"takes matrices whose sides are multiples of {_SIDE}, not {num_in} x {num_out}"
    if num_rows < 1:
        return f"takes one row or more, not {num_rows}"
    return None


def interpreter() -> Any:
    """What makes a CPU run the kernels, thread by thread: slow, for tests.

    Raises:
      NotImplementedError: this jax has none.
    """
    if jax.__version_info__ < (0, 12):
        raise NotImplementedError(
            f"jax {jax.__version__} has no interpreter of Mosaic GPU that can run this; 0.12 has"
        )
    # By name, since jax 0.10 has no such attribute.
    return getattr(plgpu, "InterpretGPUParams")()  # noqa: B009
