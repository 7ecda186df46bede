"""The decoder with a scalar head: the decoder's backbone, and a head that starts at nothing."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.core import mesh_spec
from deepseek_jax.nn import model as model_lib
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.training import parameter_groups, state
from tests import tiny, tolerances

UNTIED = tiny.BIASED


@pytest.fixture(scope="module")
def built():
    """The variables of both, with the same backbone; rows."""
    _, decoder = tiny.make(UNTIED)
    tokens, context = tiny.rows(batch_size=2)
    scalar = _initial(tokens, context)
    backbone = {name: leaf for name, leaf in decoder["params"].items() if name != "head"}
    params = backbone | {"scalar_head": scalar["params"]["scalar_head"]}
    return decoder, {"params": params, "balance": decoder["balance"]}, tokens, context


def _initial(tokens, context):
    init = jax.jit(lambda key: nn.unbox(ScalarDecoder(UNTIED).init(key, tokens, **context)))
    return init(jax.random.key(1))


def _scalars(variables, tokens, context):
    return jax.jit(lambda v, t: ScalarDecoder(UNTIED).apply(v, t, **context))(variables, tokens)


@pytest.mark.deep
def test_parameters_are_those_of_the_decoder_but_for_the_head(built):
    decoder, variables, tokens, context = built
    fresh = _initial(tokens, context)["params"]
    assert set(fresh) == {*decoder["params"], "scalar_head"} - {"head"}
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables["params"])
    assert jax.tree.map(jnp.shape, fresh["scalar_head"]) == {"kernel": (24,), "bias": ()}


@pytest.mark.deep
def test_a_tied_decoder_has_the_same_scalar_decoder(built):
    _, _, tokens, context = built
    tied = dataclasses.replace(UNTIED, tie_embeddings=True)
    shapes = [
        jax.eval_shape(
            lambda key, spec=spec: ScalarDecoder(spec).init(key, tokens, **context)["params"],
            jax.random.key(0),
        )
        for spec in (tied, UNTIED)
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])


@pytest.mark.deep
def test_a_head_of_zeros_gives_its_bias_everywhere(built):
    _, variables, tokens, context = built
    zero = _scalars(variables, tokens, context)
    assert zero.scalars.dtype == jnp.float32 and zero.scalars.shape == tokens.shape
    np.testing.assert_array_equal(zero.scalars, 0.0)
    head = {**variables["params"]["scalar_head"], "bias": jnp.float32(-2.5)}
    moved = variables | {"params": {**variables["params"], "scalar_head": head}}
    np.testing.assert_array_equal(_scalars(moved, tokens, context).scalars, -2.5)


def test_the_backbone_is_the_decoders(built):
    """The logits of a token are what a head with the token's column says."""
    decoder, variables, tokens, context = built
    output = jax.jit(lambda v, t: model_lib.Decoder(UNTIED).apply(v, t, **context))(decoder, tokens)
    kernel = decoder["params"]["head"]["kernel"][:, 7]
    head = {"kernel": kernel, "bias": jnp.float32(1.0)}
    params = {**variables["params"], "scalar_head": head}
    answer = _scalars(variables | {"params": params}, tokens, context)
    np.testing.assert_allclose(answer.scalars, output.logits[..., 7] + 1.0, **tolerances.LAYER_F32)
    np.testing.assert_array_equal(answer.aux_loss, output.aux_loss)
    np.testing.assert_array_equal(answer.stats.load, output.stats.load)


@pytest.mark.deep
def test_a_number_depends_on_the_tokens_up_to_it_alone(built):
    decoder, variables, tokens, context = built
    kernel = decoder["params"]["head"]["kernel"][:, 7]
    params = {**variables["params"], "scalar_head": {"kernel": kernel, "bias": jnp.float32(0.0)}}
    variables = variables | {"params": params}
    before = np.asarray(_scalars(variables, tokens, context).scalars)
    changed = tokens.at[:, 13].set((tokens[:, 13] + 1) % 50)
    after = np.asarray(_scalars(variables, changed, context).scalars)
    np.testing.assert_array_equal(before[:, :13], after[:, :13])
    assert (before[:, 13:] != after[:, 13:]).all(axis=1).all()


def test_optimizer_and_mesh_know_the_head():
    layout = layout_lib.make(mesh_spec.ONE_DEVICE, jax.devices())
    placement = state.parameter_placement(
        ScalarDecoder(UNTIED), sequence_length=4, mesh=layout.mesh
    )
    groups = {name: parameter_groups.parameter_group(name) for name in placement}
    assert groups["scalar_head.kernel"] == "projection" and groups["scalar_head.bias"] == "plain"
    mesh = mesh_spec.MeshSpec(data=2, expert=2, model=2, exchange="exact", rows_factor=0.0)
    cut = state.parameter_placement(
        ScalarDecoder(UNTIED), sequence_length=4, mesh=layout_lib.make(mesh, jax.devices()).mesh
    )
    assert cut["scalar_head.kernel"].shard_shape((24,)) == (6,)
    assert cut["scalar_head.bias"].shard_shape(()) == ()
