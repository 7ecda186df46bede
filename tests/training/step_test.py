"""The step on a stand-in model whose every number can be recomputed in numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.nn.model import ModelOutput
from deepseek_jax.ops.balance import RouterStats
from deepseek_jax.training import finite, optimizer, parameter_groups, state, step
from tests import tolerances
from tests.training.optimizer_test import ADAMW

LAYERS, B, L, V, D, E = 2, 4, 6, 5, 4, 3
RATE = 0.25
BAD_TOKEN = V - 1


def _apply(variables, tokens, *, document_ids, positions):
    """Bigram logits; one router a layer that is free to be wrong about everything but load."""
    del positions
    params, bias = variables["params"], variables["balance"]["choice_bias"]
    x = params["embed"]["embedding"][tokens]
    real = document_ids > 0
    router_logits = jnp.einsum(
        "bld,nde->nble", x, params["layers"]["feed_forward"]["router"]["kernel"]
    )
    chosen = jnp.argmax(router_logits + bias[:, None, None], axis=-1)
    load = jnp.sum(
        jax.nn.one_hot(chosen, E) * real[None, ..., None].astype(jnp.float32), axis=(1, 2)
    )
    squares = jnp.mean(jnp.square(router_logits), axis=(0, 3))
    aux_loss = jnp.sum(jnp.where(real, squares, 0.0)) / jnp.sum(real, dtype=jnp.float32)
    zeros = jnp.zeros(LAYERS)
    head, stats = params["head"]["kernel"], RouterStats(load, *[zeros] * 5)
    return ModelOutput(x @ head, aux_loss, stats, x, head)


def _state(transform, *, bias=0.0):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "embed": {"embedding": jax.random.normal(keys[0], (V, D))},
        "head": {"kernel": jax.random.normal(keys[1], (D, V))},
        "layers": {
            "feed_forward": {"router": {"kernel": jax.random.normal(keys[2], (LAYERS, D, E))}}
        },
    }
    balance = {"choice_bias": jnp.full((LAYERS, E), bias)}
    return state.TrainState(jnp.int32(0), params, balance, transform.init(params), keys[3])


def _batch(seed=1):
    """Rows with 6, 5, 1 and 3 targets, so that a mean of means differs from the mean."""
    generator = np.random.default_rng(seed)
    mask = np.arange(L)[None, :] < np.array([6, 5, 1, 3])[:, None]
    return {
        "tokens": generator.integers(0, BAD_TOKEN, (B, L)).astype(np.int32),
        "targets": generator.integers(0, V, (B, L)).astype(np.int32),
        "target_mask": mask,
        "document_ids": mask.astype(np.int32),
        "positions": np.zeros((B, L), np.int32),
    }


TRANSFORM = optimizer.make_optimizer(ADAMW, num_steps=20)


def _steps(num_microbatches, batches, *, apply=_apply):
    train_step = step.make_train_step(
        apply,
        TRANSFORM,
        num_microbatches=num_microbatches,
        bias_update_rate=RATE,
        layout=None,
        shardings=None,
    )
    current, metrics = _state(TRANSFORM), None
    for batch in batches:
        current, metrics = train_step(current, batch)
    return current, metrics


def test_loss_by_hand():
    batch = _batch()
    before = _state(TRANSFORM).params
    _, metrics = _steps(1, [batch])
    x = np.asarray(before["embed"]["embedding"])[batch["tokens"]]
    logits = x @ np.asarray(before["head"]["kernel"])
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(logprobs, batch["targets"][..., None], -1)[..., 0]
    assert metrics.num_targets == 15
    expected = nats[batch["target_mask"]].mean()
    np.testing.assert_allclose(metrics.loss, expected, **tolerances.LAYER_F32)
    means = [row[mask].mean() for row, mask in zip(nats, batch["target_mask"], strict=True)]
    assert abs(np.mean(means) - expected) > 0.01  # what a mean of the rows' means would give


@pytest.mark.deep
@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_microbatches_change_nothing(num_microbatches):
    batches = [_batch(1), _batch(2)]
    whole, whole_metrics = _steps(1, batches)
    parts, parts_metrics = _steps(num_microbatches, batches)
    chex.assert_trees_all_close(parts_metrics, whole_metrics, **tolerances.LAYER_F32)
    chex.assert_trees_all_close(parts.params, whole.params, **tolerances.LAYER_F32)
    chex.assert_trees_all_equal(parts.balance, whole.balance)


def test_the_bias_moves_once_by_the_load_of_the_whole_batch():
    current, metrics = _steps(2, [_batch()])
    load = np.asarray(metrics.stats.load)
    np.testing.assert_array_equal(load.sum(-1), [15.0, 15.0])
    assert (load != 5.0).any()
    np.testing.assert_array_equal(current.balance["choice_bias"], RATE * np.sign(5.0 - load))


@pytest.mark.deep
def test_padding_reaches_nothing():
    batch, other = _batch(), _batch()
    padding = ~batch["target_mask"]
    for name in ("tokens", "targets"):
        other[name][padding] = (other[name][padding] + 1) % BAD_TOKEN
    chex.assert_trees_all_equal(_steps(1, [batch]), _steps(1, [other]))


def test_the_state_is_donated():
    train_step = step.make_train_step(
        _apply,
        TRANSFORM,
        num_microbatches=1,
        bias_update_rate=RATE,
        layout=None,
        shardings=None,
    )
    before = _state(TRANSFORM)
    train_step(before, _batch())
    assert before.params["head"]["kernel"].is_deleted()


def _poisoned(part):
    """An `apply` that turns NaN in one part of the model where BAD_TOKEN is read."""

    def apply(variables, tokens, *, document_ids, positions):
        output = _apply(variables, tokens, document_ids=document_ids, positions=positions)
        nan = jnp.where(jnp.any(tokens == BAD_TOKEN), jnp.nan, 0.0)
        if part == "hidden":
            return output._replace(hidden=output.hidden + nan)
        kernel = variables["params"]["layers"]["feed_forward"]["router"]["kernel"]
        # sqrt has an infinite slope at 0: the loss is finite, the gradient is 0 * inf = NaN.
        is_good = jnp.all(tokens != BAD_TOKEN).astype(jnp.float32)
        hidden = jnp.sqrt(jnp.sum(kernel * 0) + is_good)
        return output._replace(aux_loss=output.aux_loss + hidden)

    return apply


@pytest.mark.parametrize(
    ("part", "first"),
    [("hidden", "embed.embedding"), ("gradient", "layers.feed_forward.router.kernel")],
)
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_non_finite_step_is_not_applied_and_is_named(part, first, num_microbatches):
    good, bad = _batch(1), _batch(2)
    bad["tokens"][3, 0] = BAD_TOKEN
    expected, good_metrics = _steps(num_microbatches, [good], apply=_poisoned(part))
    names = [
        parameter_groups.parameter_name(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(expected.params)
    ]
    finite.check(jax.device_get(good_metrics), step=1, parameter_names=names)
    kept, metrics = _steps(num_microbatches, [good, bad], apply=_poisoned(part))
    chex.assert_trees_all_equal(kept, expected)
    assert np.isfinite(metrics.loss) == (part == "gradient")
    with pytest.raises(finite.NonFiniteError, match=rf"^step 2: .* is {first}\."):
        finite.check(jax.device_get(metrics), step=2, parameter_names=names)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_number_that_is_not_finite_keeps_the_whole_old_state(bad, place):
    old = {"step": jnp.int32(3), "params": jnp.zeros(2), "key": jax.random.key(0)}
    new = {"step": jnp.int32(4), "params": jnp.array([1.0, bad]), "key": jax.random.key(1)}
    values = [jnp.float32(3e38), jnp.float32(3e38), jnp.float32(1.0)]  # their sum is infinite
    kept = jax.jit(step.new_if_finite)
    chex.assert_trees_all_equal(kept(new, old, values), new)
    values[place] = jnp.float32(bad)
    chex.assert_trees_all_equal(kept(new, old, values), old)


def test_a_non_finite_heldout_loss_is_named():
    finite.check_heldout({"heldout_loss": 1.0}, step=3)
    with pytest.raises(finite.NonFiniteError, match="step 3: heldout_loss is inf"):
        finite.check_heldout({"heldout_loss": float("inf")}, step=3)
