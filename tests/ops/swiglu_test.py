"""The gate and the matmul of SwiGLU, by hand and in low precision."""

import jax.numpy as jnp
import numpy as np

from deepseek_jax.ops import swiglu
from tests import tolerances


def test_gate_by_hand():
    # silu(2) * 3 and silu(0) * 5; exchanged, the first would be 2 silu(3) = 5.715445
    out = swiglu.gated(jnp.array([2.0, 0.0]), jnp.array([3.0, 5.0]))
    np.testing.assert_allclose(out, [5.284782, 0.0], **tolerances.OP_F32)


def test_low_precision_rounds_once():
    # silu(1) * 1.125 = 0.822441 lies nearest to 0.82421875; of silu(1) rounded, 0.73046875, it
    # would be 0.821777, nearest to 0.8203125
    out = swiglu.gated(jnp.array([1.0], jnp.bfloat16), jnp.array([1.125], jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), [0.82421875])


def test_matmul_accumulates_in_float32():
    # 256 + 1 + 1: a sum in bfloat16 would stay at 256
    x = jnp.array([[256.0, 1.0, 1.0]], jnp.bfloat16)
    out = swiglu.matmul("td,df->tf", x, jnp.ones((3, 1), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), [[258.0]])
