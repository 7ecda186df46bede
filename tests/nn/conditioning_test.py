"""What a task vector does to a layer, by hand."""

import jax.numpy as jnp
import numpy as np

from deepseek_jax.nn import conditioning
from deepseek_jax.nn.conditioning import Modulation


def test_modulation_by_hand():
    x = jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    told = Modulation(
        scale=jnp.array([[1.0, 0.0], [0.0, -1.0]]), shift=jnp.array([[0.0, 10.0], [20.0, 0.0]])
    )
    want = [[[2.0, 12.0], [6.0, 14.0]], [[25.0, 0.0], [27.0, 0.0]]]
    np.testing.assert_array_equal(conditioning.modulate(x, told), want)
    assert conditioning.modulate(x, None) is x


def test_each_row_shifts_its_own_tokens():
    shift = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    want = [[1.0, 2.0]] * 3 + [[3.0, 4.0]] * 3  # tokens lie row by row
    np.testing.assert_array_equal(conditioning.by_token(shift, length=3), want)
    assert conditioning.by_token(None, length=3) is None
