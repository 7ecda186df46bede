"""The parameter groups, the schedule, and what each group's update looks like."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.core.run_spec import OptimizerSpec
from deepseek_jax.training import optimizer, parameter_groups
from tests import tolerances

ADAMW = OptimizerSpec(
    name="adamw",
    learning_rate=0.1,
    muon_learning_rate=0.0,
    warmup_steps=4,
    final_fraction=0.1,
    weight_decay=0.5,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    clip_norm=1e9,
)
MUON = dataclasses.replace(ADAMW, name="muon", muon_learning_rate=0.2)

GROUPS = {
    "embed.embedding": "plain",
    "head.kernel": "projection",
    "final_norm.scale": "plain",
    "layers.attention_norm.scale": "plain",
    "layers.feed_forward_norm.scale": "plain",
    "layers.attention.query.kernel": "layer_matrix",
    "layers.attention.key.kernel": "layer_matrix",
    "layers.attention.value.kernel": "layer_matrix",
    "layers.attention.out.kernel": "layer_matrix",
    "layers.attention.query_norm.scale": "plain",
    "layers.attention.key_norm.scale": "plain",
    "layers.attention.summary_norm.scale": "plain",
    "layers.attention.summary_queries": "plain",
    "layers.attention.summary_positions": "plain",
    "layers.feed_forward.router.kernel": "projection",
    "layers.feed_forward.gate": "layer_matrix",
    "layers.feed_forward.up": "layer_matrix",
    "layers.feed_forward.down": "layer_matrix",
    "layers.feed_forward.shared_gate": "layer_matrix",
    "layers.feed_forward.shared_up": "layer_matrix",
    "layers.feed_forward.shared_down": "layer_matrix",
}
# layers 2, D 6, N 2, H 4, E 3, F 5, V 7
SHAPES = {
    "embed.embedding": (7, 6),
    "head.kernel": (6, 7),
    "final_norm.scale": (6,),
    "layers.attention.query.kernel": (2, 6, 2, 4),
    "layers.attention.out.kernel": (2, 2, 4, 6),
    "layers.feed_forward.router.kernel": (2, 6, 3),
    "layers.feed_forward.gate": (2, 3, 6, 5),
    "layers.feed_forward.down": (2, 3, 5, 6),
}
# As matrices: the batch of independent ones, inputs, outputs.
MATRICES = {
    "layers.attention.query.kernel": (2, 6, 8),
    "layers.attention.out.kernel": (2, 8, 6),
    "layers.feed_forward.gate": (6, 6, 5),
    "layers.feed_forward.down": (6, 5, 6),
}


def _nested(flat):
    tree = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def _flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {parameter_groups.parameter_name(path): leaf for path, leaf in leaves}


def _normal(seed):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    named = zip(SHAPES.items(), keys, strict=True)
    return _nested({name: jax.random.normal(key, shape) for (name, shape), key in named})


def _first_update(spec, params, gradients):
    transform = optimizer.make_optimizer(spec, num_steps=20)
    updates, _ = jax.jit(transform.update)(gradients, transform.init(params), params)
    return _flat(updates)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_by_name(name):
    assert parameter_groups.parameter_group(name) == GROUPS[name]


@pytest.mark.parametrize(
    "name", ["layers.feed_forward.gate_bias", "value_head.kernel", "layers.mixer.kernel"]
)
def test_an_unknown_parameter_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        parameter_groups.parameter_group(name)


def test_schedule_by_hand():
    rate = optimizer.learning_rate(ADAMW, peak=0.1, num_steps=20)
    # Update i takes the value at i + 1: 1/4, 2/4, 3/4 of the peak, then the peak itself.
    np.testing.assert_allclose([rate(i) for i in range(4)], [0.025, 0.05, 0.075, 0.1], rtol=1e-6)
    # Half of the cosine, at 4 + 16 / 2 = 12: the mean of the peak and the end.
    np.testing.assert_allclose(rate(11), (0.1 + 0.01) / 2, rtol=1e-6)
    np.testing.assert_allclose(rate(19), 0.01, rtol=1e-6)  # the last of 20 updates
    no_warmup = dataclasses.replace(ADAMW, warmup_steps=0)
    first = optimizer.learning_rate(no_warmup, peak=0.1, num_steps=20)(0)
    assert 0.099 < first < 0.1


@pytest.mark.deep
@pytest.mark.parametrize("spec", [ADAMW, MUON], ids=["adamw", "muon"])
def test_only_matrices_decay(spec):
    params = _normal(0)
    updates = _first_update(spec, params, jax.tree.map(jnp.zeros_like, params))
    for name, update in updates.items():
        rate = 0.25 * (0.2 if spec.name == "muon" and name in MATRICES else 0.1)
        decay = 0.0 if GROUPS[name] == "plain" else 0.5
        np.testing.assert_allclose(update, -rate * decay * _flat(params)[name], **tolerances.OP_F32)


def test_adamw_first_update_is_the_sign_of_the_gradient():
    spec = dataclasses.replace(ADAMW, weight_decay=0.0)
    gradients = _normal(1)
    for name, update in _first_update(spec, _normal(0), gradients).items():
        expected = -0.025 * np.sign(_flat(gradients)[name])
        np.testing.assert_allclose(update, expected, **tolerances.LAYER_F32)


def test_muon_makes_each_layer_and_expert_orthogonal():
    spec = dataclasses.replace(MUON, weight_decay=0.0)
    gradients = _normal(1)
    updates = _first_update(spec, _normal(0), gradients)
    for name, shape in MATRICES.items():
        scale = 0.05 * np.sqrt(max(1.0, shape[2] / shape[1]))
        matrices = -np.asarray(updates[name]).reshape(shape) / scale
        singular = np.linalg.svd(matrices, compute_uv=False)
        # Newton-Schulz ends near 1, in about [0.5, 1.5]; the gradient's spread is far wider.
        raw = np.linalg.svd(np.asarray(_flat(gradients)[name]).reshape(shape), compute_uv=False)
        assert (raw.max(-1) / raw.min(-1)).max() > 4
        assert singular.min() > 0.3 and singular.max() < 1.6, (name, singular)
    # The router, the head and the embedding are Adam's: the sign of the gradient.
    for name in set(SHAPES) - set(MATRICES):
        expected = -0.025 * np.sign(_flat(gradients)[name])
        np.testing.assert_allclose(updates[name], expected, **tolerances.LAYER_F32)


def test_muon_treats_matrices_independently():
    params, gradients = _normal(0), _normal(1)
    changed = _nested(_flat(gradients))
    gate = changed["layers"]["feed_forward"]["gate"]
    changed["layers"]["feed_forward"]["gate"] = gate.at[1, 2].set(gate[1, 2] ** 2)
    before = _first_update(MUON, params, gradients)["layers.feed_forward.gate"]
    after = _first_update(MUON, params, changed)["layers.feed_forward.gate"]
    same = np.all(np.asarray(before) == np.asarray(after), axis=(-2, -1))
    np.testing.assert_array_equal(same, [[True, True, True], [True, True, False]])


@pytest.mark.deep
def test_clipping_is_by_the_global_norm():
    spec = dataclasses.replace(ADAMW, eps=1e3, weight_decay=0.0)  # linear in the gradient
    params, gradients = _normal(0), _normal(1)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradients)))
    clipped = dataclasses.replace(spec, clip_norm=float(norm) / 2)
    whole = _first_update(spec, params, gradients)
    half = _first_update(clipped, params, gradients)
    for name in SHAPES:
        np.testing.assert_allclose(half[name], whole[name] / 2, rtol=1e-2)
