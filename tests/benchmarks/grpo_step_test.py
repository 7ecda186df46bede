"""The benchmark of an iteration of GRPO at a tiny shape: what it times is a whole iteration."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console

from benchmarks import grpo_shape, grpo_step
from deepseek_jax.reinforcement.rewards import Verdict
from tests import tolerances

NUM_STEPS = 2


def tiny_spec():
    # The simplest model, which compiles soonest.
    spec = grpo_shape.make_spec(is_dense=True, attention="full", num_steps=NUM_STEPS)
    return dataclasses.replace(
        spec,
        model=dataclasses.replace(
            spec.model,
            num_layers=1,
            model_dim=8,
            num_heads=2,
            num_kv_heads=2,
            head_dim=4,
            expert_hidden_dim=8,
        ),
        rollout=dataclasses.replace(
            spec.rollout, num_prompts=2, samples_per_prompt=4, max_new_tokens=5
        ),
    )


@pytest.fixture(scope="module")
def result():
    return grpo_step.measure(tiny_spec(), num_timed=1)


@pytest.mark.deep
def test_the_parts_do_what_the_whole_does(result):
    whole, parts = result["metrics"]["whole"], result["metrics"]["parts"]
    assert len(whole) == len(parts) == NUM_STEPS
    for name in whole[0]:
        np.testing.assert_allclose(
            whole[0][name], parts[0][name], err_msg=name, **tolerances.LAYER_F32
        )


@pytest.mark.deep
def test_every_iteration_has_something_to_learn_from(result):
    for metrics in result["metrics"]["whole"]:
        assert metrics["reward_std"] > 0.0
        assert metrics["silent_groups"] < 1.0
    assert 4.0 < result["mean_tokens_drawn"] <= 5.0
    assert result["num_rollouts"] == 8
    assert len(result["iteration_seconds"]) == 1


@pytest.mark.deep
def test_without_the_peer_it_says_so(result, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho False\n")  # as one that has no TRL
    python.chmod(0o755)
    assert grpo_step.run_peer(tiny_spec(), python=str(python), num_timed=1) is None
    told = result | {
        "peer": None,
        "load_average": {"before": (0.5, 0.25, 0.0)},
        "made_with": grpo_step.made_with(tiny_spec()),
    }
    console = rich_console.Console(width=120)
    with console.capture() as captured:
        grpo_step.report(console, told)
    assert grpo_step.NO_PEER in captured.get()
    assert captured.get().count("TRL") == 1
    json.dumps(told)


def test_even_sums_are_right_too_and_count_the_answer_alone():
    drawn = type("Drawn", (), {})()
    drawn.responses = jnp.array([[1, 1, 1], [1, 2, 1], [1, 1, 1]])
    drawn.response_mask = jnp.array([[True, True, False], [True, True, False], [True] * 3])
    verdict = Verdict(jnp.array([False, False, True]), jnp.zeros(3, bool))
    collect = grpo_step.with_even_sums(lambda state, prompts: (drawn, verdict))
    _, judged = collect(None, None)
    np.testing.assert_array_equal(judged.is_right, [True, False, True])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"reward_std": 0.5, "gradient_norm": float("nan")}, "iteration 1: not finite: gradient"),
        ({"reward_std": 0.0, "gradient_norm": 1.0}, "iteration 1: all answers earned the same"),
    ],
)
def test_an_iteration_that_learns_nothing_is_refused(metrics, message):
    good = {"reward_std": 0.5, "gradient_norm": 1.0}
    grpo_step.check([good])
    with pytest.raises(RuntimeError, match=message):
        grpo_step.check([good, metrics])


def test_the_shape_is_that_of_the_peer():
    for is_dense, width in ((False, 128), (True, 256)):
        for attention in ("local_global", "full"):
            spec = grpo_shape.make_spec(is_dense=is_dense, attention=attention, num_steps=3)
            assert spec.rollout.num_rows == 128
            assert spec.model.expert_hidden_dim == width
            assert spec.update.num_updates == 1
    assert len({problem.prompt for problem in grpo_shape.problems()}) == grpo_shape.NUM_PROBLEMS
