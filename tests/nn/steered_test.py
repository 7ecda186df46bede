"""The task vector: nothing without it, nothing at first with it, both parts act by themselves."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.core.steering_spec import TaskVectorSpec
from deepseek_jax.nn import conditioning
from deepseek_jax.nn import model as model_lib
from deepseek_jax.nn.steered import SteeredDecoder
from deepseek_jax.training import parameter_groups
from tests import tiny, tolerances

TASK = TaskVectorSpec(
    dim=6,
    description_length=8,
    encoder_dim=5,
    encoder_layers=2,
    encoder_window=3,
    num_queries=2,
    shifts_router=True,
    modulates_blocks=True,
)
ROUTER_ONLY = dataclasses.replace(TASK, modulates_blocks=False)
BLOCKS_ONLY = dataclasses.replace(TASK, shifts_router=False)
SAID = jnp.array([[5, 6, 7, 0, 0, 0, 0, 0], [7, 6, 5, 0, 0, 0, 0, 0]], jnp.int32)


def make(task_spec, *, noise=0.0):
    """A steered decoder; `noise` is added to what starts at zero."""
    model = SteeredDecoder(tiny.SPARSE, task_spec=task_spec)
    tokens, context = tiny.rows(length=4)
    params = jax.jit(lambda key: nn.unbox(model.init(key, tokens, **context)))(jax.random.key(0))
    params = params["params"]
    task = {
        name: leaf + noise * jax.random.normal(jax.random.key(number), leaf.shape)
        for number, (name, leaf) in enumerate(params["layers"]["task"].items())
    }
    return model, {"params": params | {"layers": params["layers"] | {"task": task}}}


def names(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {parameter_groups.parameter_name(path) for path, _ in leaves}


@pytest.mark.deep
def test_without_a_task_nothing_of_it_is_constructed(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("constructed")

    monkeypatch.setattr(conditioning, "TaskConditions", refuse)
    _, variables = tiny.make(tiny.SPARSE)
    steered = names(make_quietly())
    assert names(variables["params"]) == {
        name for name in steered if not name.startswith(("layers.task.", "description."))
    }


def make_quietly():
    """The names of a steered decoder's parameters, written out: its parts are patched away."""
    own = ("router_shift", "attention_scale", "attention_shift")
    own += ("feed_forward_scale", "feed_forward_shift")
    _, plain = tiny.make(tiny.SPARSE)
    layers = plain["params"]["layers"] | {"task": dict.fromkeys(own, jnp.zeros(()))}
    return plain["params"] | {"layers": layers, "description": {"out": jnp.zeros(())}}


def test_a_new_task_vector_changes_nothing():
    model, variables = make(TASK)
    tokens, context = tiny.rows()
    plain = {name: leaf for name, leaf in variables["params"].items() if name != "description"}
    plain["layers"] = {name: leaf for name, leaf in plain["layers"].items() if name != "task"}
    unsteered = model_lib.Decoder(tiny.SPARSE)
    want = tiny.applied(unsteered, {"params": plain}, tokens, **context).logits
    got = tiny.applied(model, variables, tokens, **context, description=SAID).logits
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("task_spec", [TASK, ROUTER_ONLY, BLOCKS_ONLY])
@pytest.mark.deep
def test_each_part_has_its_parameters_and_a_group_only_where_it_is_on(task_spec):
    _, variables = make(task_spec)
    found = names(variables["params"])
    assert ("layers.task.router_shift" in found) == task_spec.shifts_router
    assert ("layers.task.attention_scale" in found) == task_spec.modulates_blocks
    for name in found:
        parameter_groups.parameter_group(name)


@pytest.mark.parametrize("task_spec", [ROUTER_ONLY, BLOCKS_ONLY])
@pytest.mark.deep
def test_the_gradient_reaches_the_encoder_through_each_part_alone(task_spec):
    model, variables = make(task_spec, noise=0.3)
    tokens, context = tiny.rows()

    def loss(params):
        logits = model.apply({"params": params}, tokens, **context, description=SAID).logits
        return jnp.mean(jax.nn.log_softmax(logits)[..., 3])

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for name, leaf in gradients["description"].items():
        if name != "missing":  # no description is
            assert max(np.abs(x).max() for x in jax.tree.leaves(leaf)) > 0.0, name
    for name, leaf in gradients["layers"]["task"].items():
        assert np.abs(leaf).max() > 0.0, name


@pytest.mark.deep
def test_a_description_is_for_consecutive_rows():
    model, variables = make(TASK, noise=0.3)
    tokens, context = tiny.rows(batch_size=4)
    got = tiny.applied(model, variables, tokens, **context, description=SAID).logits
    by_row = SAID[jnp.array([0, 0, 1, 1])]
    each = tiny.applied(model, variables, tokens, **context, description=by_row)
    np.testing.assert_allclose(got, each.logits, **tolerances.LAYER_F32)


@pytest.mark.deep
def test_order_and_absence_are_told_apart():
    model, variables = make(TASK)
    said = jnp.concatenate([SAID, jnp.zeros_like(SAID[:1])])
    first, second, missing = tiny.applied(model, variables, said, method="encode")
    for one, other in ((first, second), (first, missing), (second, missing)):
        assert np.abs(one - other).max() > 0.1
    np.testing.assert_allclose(np.mean(np.square(first)), 1.0, rtol=1e-4)


@pytest.mark.deep
@pytest.mark.parametrize("task_spec", [TASK, ROUTER_ONLY])
def test_cached_decoding_equals_the_full_pass(task_spec):
    model, variables = make(task_spec, noise=0.3)
    tokens, context = tiny.rows(length=12)
    full = tiny.applied(model, variables, tokens, **context, description=SAID).logits
    cache = model_lib.empty_cache(tiny.SPARSE, batch_size=2, max_length=12)
    cache = cache._replace(task_vector=tiny.applied(model, variables, SAID, method="encode"))
    lengths = jnp.array([3, 3], jnp.int32)
    prompts = tokens[:, :4]
    logits, cache = tiny.applied(model, variables, prompts, lengths, cache, method="prefill")
    np.testing.assert_allclose(logits, full[:, 2], **tolerances.LAYER_F32)
    step = jax.jit(lambda t, c: model.apply(variables, t, c, method="step"))
    for at in range(3, 12):
        logits, cache = step(tokens[:, at], cache)
        np.testing.assert_allclose(logits, full[:, at], **tolerances.LAYER_F32)


def test_a_vector_without_use_and_a_use_without_vector_are_refused():
    tokens, context = tiny.rows(length=4)
    plain, variables = tiny.make(tiny.SPARSE)
    with pytest.raises(ValueError, match="a task_vector for a decoder with task_spec=None"):
        plain.apply(variables, tokens, **context, task_vector=jnp.zeros((2, 6)))
    _, steered = make(TASK)
    cache = model_lib.empty_cache(tiny.SPARSE, batch_size=2, max_length=4)
    with pytest.raises(ValueError, match=re.escape("no task_vector for a decoder")):
        model = SteeredDecoder(tiny.SPARSE, task_spec=TASK)
        model.apply(steered, tokens[:, 0], cache, method="step")


@pytest.mark.deep
def test_without_a_task_the_lowered_programs_have_no_operation_of_it(monkeypatch):
    model, variables = tiny.make(tiny.SPARSE)
    tokens, context = tiny.rows(length=4)
    cache = model_lib.empty_cache(tiny.SPARSE, batch_size=2, max_length=4)

    def lowered():
        whole = jax.jit(lambda v, t: model.apply(v, t, **context))
        step = jax.jit(lambda v, t, c: model.apply(v, t, c, method="step"))
        return (
            whole.lower(variables, tokens).as_text(),
            step.lower(variables, tokens[:, 0], cache).as_text(),
        )

    before = lowered()
    monkeypatch.setattr(conditioning, "modulate", lambda x, _: x)
    monkeypatch.setattr(conditioning, "by_token", lambda _, **__: None)
    assert lowered() == before
