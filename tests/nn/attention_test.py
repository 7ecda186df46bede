"""Which kernel computes full attention, and that it changes no answer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.nn import attention, kernels
from deepseek_jax.nn import model as model_lib
from tests import tiny, tolerances
from tests.parallel import layers

FULL = dataclasses.replace(tiny.VARIANTS["full"], head_dim=16)
LENGTHS = jnp.array([13, 20], jnp.int32)


@pytest.fixture
def kernels_run(monkeypatch):
    """A device that runs the kernels, step by step."""
    flash = attention.flash
    interpreted = functools.partial(flash.flash_attention, interpret=True)
    monkeypatch.setattr(flash, "flash_attention", interpreted)
    monkeypatch.setattr(flash, "for_device", lambda device: ("triton", "tiles"))


def initialised(spec):
    """The types of a decoder's parameters."""
    tokens, context = tiny.rows()
    return jax.eval_shape(
        lambda: model_lib.Decoder(spec).init(jax.random.key(0), tokens, **context)
    )


@pytest.mark.deep
def test_the_kernels_change_no_answer_gradient_or_prefill(kernels_run):
    model, variables = tiny.make(FULL)
    tokens, context = tiny.rows()
    cache = model_lib.empty_cache(FULL, batch_size=2, max_length=24)

    def everything(model):
        def loss(params):
            out = model.apply(variables | {"params": params}, tokens, **context)
            return jnp.sum(out.logits**2), out.logits

        prefilled = model.apply(variables, tokens, LENGTHS, cache, method="prefill")
        return jax.grad(loss, has_aux=True)(variables["params"]), prefilled

    again = model_lib.Decoder(dataclasses.replace(FULL, attention_kernel="triton"))
    want, found = (jax.jit(functools.partial(everything, each))() for each in (model, again))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, **tolerances.MODEL_F32)


def test_a_kernel_of_another_device_is_refused():
    message = "model.attention_kernel='triton': must be 'auto' or 'tiles' on cpu"
    with pytest.raises(ValueError, match=message):
        initialised(dataclasses.replace(FULL, attention_kernel="triton"))


def test_heads_that_the_kernels_do_not_take_are_refused(kernels_run):
    spec = dataclasses.replace(FULL, head_dim=8, attention_kernel="triton")
    with pytest.raises(ValueError, match="heads of width 16, 32, 64, 128, not 8"):
        initialised(spec)


@pytest.mark.parametrize(("head_dim", "kernel"), [(16, "triton"), (8, "tiles")])
def test_auto_takes_what_can_and_tells_it_once(kernels_run, caplog, head_dim, kernel):
    kernels.tell.cache_clear()
    with caplog.at_level("INFO"):
        initialised(dataclasses.replace(FULL, head_dim=head_dim, attention_kernel="auto"))
    (line,) = [each for each in caplog.messages if "attention_kernel" in each]
    told = f"{kernel} for 20 tokens, 4 heads of {head_dim}, 2 of keys, in float32 on"
    assert f"model.attention_kernel='auto': {told}" in line


def test_on_a_mesh_a_kernel_gets_the_rows_and_heads_of_its_device(kernels_run, monkeypatch):
    shapes = []

    def attend(query, key, value, ids):
        shapes.append((query.shape, key.shape, value.shape, ids.shape))
        return query

    monkeypatch.setattr(attention.flash, "flash_attention", attend)
    spec = dataclasses.replace(FULL, attention_kernel="triton")
    tokens, context = tiny.rows(batch_size=8)
    model = model_lib.Decoder(spec, layers.layout((2, 2, 2)))
    jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, **context))
    assert set(shapes) == {((2, 20, 2, 16), (2, 20, 1, 16), (2, 20, 1, 16), (2, 20))}


@pytest.mark.deep
def test_without_a_kernel_for_the_device_the_program_is_that_of_the_tiles():
    def program(kernel):
        spec = dataclasses.replace(FULL, attention_kernel=kernel)
        tokens, context = tiny.rows()
        model, types = model_lib.Decoder(spec), initialised(spec)
        return jax.jit(model.apply).lower(types, tokens, **context).as_text()

    assert program("auto") == program("tiles")
