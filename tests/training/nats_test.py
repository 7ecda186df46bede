"""The loss of a decoder's output: equal to that by logits, alone and on meshes."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.nn.model import Decoder, ModelOutput
from deepseek_jax.objectives import masked, next_token
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel import placement, program, rules
from deepseek_jax.training import nats
from tests import tiny, tolerances

B, L, V = 8, 16, 512


def _loss(model, tokens, context, *, layout, is_plain=False):
    """(variables) -> mean nats of the tokens after each row's first."""
    targets, mask = jnp.roll(tokens, -1, axis=1), jnp.arange(L)[None] < jnp.full((B, 1), L - 1)

    def loss(variables):
        output = model.apply(variables, tokens, **context)
        if is_plain:
            terms = next_token.next_token_terms(output.logits, targets)
            return masked.masked_mean(terms, mask) + output.aux_loss
        weights = mask.astype(jnp.float32) / (B * (L - 1))
        return nats.weighted(output, targets, weights, layout=layout) + output.aux_loss

    return jax.jit(jax.value_and_grad(loss))


@pytest.fixture
def two_positions(monkeypatch):
    """Chunks of two positions on one device."""
    monkeypatch.setattr(nats, "MAX_LOGITS_BYTES", 2 * B * V * 4)


def _sizes(text):
    return {math.prod(map(int, size.split(","))) for size in re.findall(r"\[([\d,]+)\]", text)}


@pytest.mark.deep
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_decoder_trains_as_by_its_logits_without_any(two_positions, tie_embeddings):
    spec = dataclasses.replace(tiny.DENSE, vocab_size=V, tie_embeddings=tie_embeddings)
    model, variables = tiny.make(spec)
    batch = tiny.rows(batch_size=B, length=L, vocab_size=V)
    compiled = _loss(model, *batch, layout=None).lower(variables).compile()
    plain = _loss(model, *batch, layout=None, is_plain=True).lower(variables).compile()
    found, wanted = compiled(variables), plain(variables)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **tolerances.LAYER_F32), found, wanted
    )
    assert max(_sizes(plain.as_text())) == B * L * V
    assert max(_sizes(compiled.as_text())) < B * L * V // 2


MESHES = [(8, 1, 1), (2, 2, 2), (1, 1, 8)]


@pytest.mark.deep
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_meshes_change_nothing_and_add_gradients_up_once(two_positions, sizes, monkeypatch):
    mesh = MeshSpec(**dict(zip(rules.AXES, sizes, strict=True)), exchange="exact", rows_factor=0.0)
    layout = layout_lib.make(mesh, jax.devices())
    keys = jax.random.split(jax.random.key(0), 4)
    dim = 8
    hidden = jax.random.normal(keys[0], (B, L, dim))
    head = jax.random.normal(keys[1], (dim, V))
    targets = jax.random.randint(keys[2], (B, L), 0, V, jnp.int32)
    weights = jax.random.uniform(keys[3], (B, L))
    # As on one device each holds the logits of two of its positions.
    monkeypatch.setattr(nats, "MAX_LOGITS_BYTES", nats.MAX_LOGITS_BYTES // mesh.num_devices)

    def loss(hidden, head, targets, weights, layout=None):
        output = ModelOutput(jnp.zeros(()), jnp.zeros(()), None, hidden, head)
        return nats.weighted(output, targets, weights, layout=layout)

    wanted = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, head, targets, weights)
    rows = {"hidden": hidden, "targets": targets, "weights": weights}
    put = placement.put_whole_rows(layout, jax.device_get(rows))
    sharding = rules.sharding(layout.mesh, "embed", "vocab")
    put["head"] = jax.device_put(head, sharding)
    on_mesh = functools.partial(loss, layout=layout)
    compiled = (
        jax.jit(
            jax.value_and_grad(on_mesh, argnums=(0, 1)),
            out_shardings=(
                rules.sharding(layout.mesh),
                (rules.sharding(layout.mesh, "batch", None, None), sharding),
            ),
        )
        .lower(*(put[name] for name in ("hidden", "head", "targets", "weights")))
        .compile()
    )
    found = compiled(*(put[name] for name in ("hidden", "head", "targets", "weights")))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **tolerances.LAYER_F32), found, wanted
    )
    of_matrix = [
        each
        for each in program.collectives(compiled.as_text())
        if each.num_bytes >= dim * V * 4 // mesh.model
    ]
    assert all(each.num_runs == 1 for each in of_matrix), of_matrix
    assert max(_sizes(compiled.as_text())) < B * L * V // mesh.num_devices


def test_the_decoder_gives_what_its_logits_are_the_product_of():
    spec = dataclasses.replace(tiny.DENSE, compute_dtype="bfloat16")
    model, variables = tiny.make(spec)
    tokens, context = tiny.rows()
    output = jax.jit(lambda: Decoder(spec).apply(variables, tokens, **context))()
    assert output.hidden.dtype == output.head.dtype == jnp.bfloat16
    logits = output.hidden.astype(jnp.float32) @ output.head.astype(jnp.float32)
    np.testing.assert_allclose(output.logits, logits, **tolerances.LAYER_F32)
