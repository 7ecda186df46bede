"""The encoder of descriptions: what stands behind the end of one has no say."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.core.steering_spec import TaskVectorSpec
from deepseek_jax.nn.description import DescriptionEncoder
from tests import tiny, tolerances

SAID = np.array([[5, 6, 7], [7, 6, 5], [9, 9, 9]], np.int32)


def encoder(length):
    spec = TaskVectorSpec(
        dim=6,
        description_length=length,
        encoder_dim=5,
        encoder_layers=2,
        encoder_window=3,
        num_queries=2,
        shifts_router=True,
        modulates_blocks=True,
    )
    return DescriptionEncoder(spec, vocab_size=12)


def padded(length):
    return jnp.asarray(np.pad(SAID, ((0, 0), (0, length - SAID.shape[1]))))


@pytest.mark.deep
def test_padding_changes_nothing():
    params = jax.jit(encoder(8).init)(jax.random.key(0), padded(8))
    params = nn.unbox(params)["params"]
    long = tiny.applied(encoder(8), {"params": params}, padded(8))
    cut = params | {"positions": params["positions"][:3]}
    short = tiny.applied(encoder(3), {"params": cut}, padded(3))
    np.testing.assert_allclose(long, short, **tolerances.LAYER_F32)


def test_equal_tokens_have_their_own_place():
    """Without positions a sentence of one token all over would read the same in the middle."""
    params = nn.unbox(jax.jit(encoder(3).init)(jax.random.key(0), padded(3)))["params"]
    moved = params | {"positions": params["positions"][::-1]}
    one, other = (
        tiny.applied(encoder(3), {"params": each}, padded(3))[2] for each in (params, moved)
    )
    assert np.abs(one - other).max() > 0.01
