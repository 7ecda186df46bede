"""`objectives.log_norms` beside float64, cut over a mesh, and by platform."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.objectives import log_norms

WAYS = (log_norms.one_reading, log_norms.two_readings, log_norms.log_norms)


@pytest.mark.parametrize("way", WAYS)
def test_hand_numbers(way):
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [0.25, 0.5, 0.25]]))
    np.testing.assert_allclose(way(logits), np.log([8.0, 1.0]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", [0.0, -3e4, 3e4])
def test_beside_float64(way, shift):
    logits = 20.0 * jax.random.normal(jax.random.key(0), (3, 5, 300)) + shift
    exact = np.asarray(logits, np.float64)
    most = exact.max(axis=-1, keepdims=True)
    exact = most[..., 0] + np.log(np.exp(exact - most).sum(axis=-1))
    np.testing.assert_allclose(jax.jit(way)(logits), exact, rtol=3e-7, atol=2e-6)


def test_not_a_number_stays_one():
    logits = jnp.zeros((2, 4)).at[1, 2].set(jnp.nan)
    for way in WAYS:
        assert np.isnan(way(logits)).tolist() == [False, True]


def test_one_reading_of_logits_that_lie_on_several_devices():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    logits = jax.random.normal(jax.random.key(1), (4, 64))
    there = jax.device_put(
        logits, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "model"))
    )
    found = jax.jit(log_norms.one_reading)(there)
    np.testing.assert_allclose(found, log_norms.two_readings(logits), rtol=1e-6)
    text = jax.jit(log_norms.one_reading).lower(there).compile().as_text()
    assert "f32[4,64]" not in text and "f32[2,64]" not in text  # no device gathers a row


@pytest.mark.parametrize(("platform", "readings"), [("cpu", 2), ("cuda", 1)])
def test_how_often_logits_are_read(platform, readings):
    logits = jax.ShapeDtypeStruct((16, 128), jnp.float32)
    text = (
        jax.jit(log_norms.log_norms).trace(logits).lower(lowering_platforms=(platform,)).as_text()
    )
    assert text.count("stablehlo.reduce") == readings


def test_shapes():
    chex.assert_shape(log_norms.log_norms(jnp.zeros((2, 3, 5))), (2, 3))
