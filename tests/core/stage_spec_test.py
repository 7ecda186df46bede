"""Every rule of the specs of problems and reward models: refused by name and value."""

import dataclasses

import pytest

from deepseek_jax.core import stage_spec
from tests.core import rules
from tests.reinforcement import tiny

PROBLEMS, REWARD = tiny.problems_spec(), tiny.reward_spec()
EVAL = stage_spec.TaskEvalSpec(task=None, size=2, num_problems=4, temperature=0.0, max_new_tokens=8)
BROKEN = [  # spec, node, changes, what the message starts with
    *(
        (PROBLEMS, "problems", {name: 0}, f"problems.{name}=0: must be at least 1")
        for name in (
            "min_size",
            "num_text",
            "num_reward",
            "num_policy",
            "num_validation",
            "num_test",
        )
    ),
    *(
        (PROBLEMS, "problems", {name: 1.5}, f"problems.{name}=1.5: must be in [0, 1]")
        for name in ("share_worked", "share_careless", "share_guess", "share_slip")
    ),
    (
        PROBLEMS,
        "problems",
        {"max_size": 1},
        "problems.max_size=1: must be at least problems.min_size=2",
    ),
    (
        PROBLEMS,
        "problems",
        {"share_guess": 0.5},
        "problems.share_*=0.5: must be shares that sum to 1",
    ),
    (EVAL, None, {"task": "chess"}, "eval.task='chess': must be one of"),
    *(
        (EVAL, None, {name: 0}, f"eval.{name}=0: must be at least 1")
        for name in ("size", "num_problems", "max_new_tokens")
    ),
    (EVAL, None, {"temperature": -0.1}, "eval.temperature=-0.1: must be at least 0"),
    (PROBLEMS, None, {"seed": -1}, "seed=-1: must be at least 0"),
    *(
        (REWARD, "train", {name: 0}, f"train.{name}=0: must be at least 1")
        for name in (
            "num_steps",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
            "restore_step",
        )
    ),
    *(
        (REWARD, "rollout", {name: 0}, f"rollout.{name}=0: must be at least 1")
        for name in (
            "num_prompts",
            "samples_per_prompt",
            "prompt_width",
            "answer_width",
            "max_new_tokens",
        )
    ),
    (REWARD, "rollout", {"temperature": 0.0}, "rollout.temperature=0.0: must be above 0"),
    *(
        (REWARD, "pairs", {name: -1}, f"pairs.{name}=-1: must be at least 0")
        for name in ("num_sampled", "num_built")
    ),
    (
        REWARD,
        "pairs",
        {"num_built": 0},
        "pairs.num_sampled=0: must be above 0 with pairs.num_built=0",
    ),
    *(
        (REWARD, "pairs", {name: 0}, f"pairs.{name}=0: must be at least 1")
        for name in ("pairs_per_problem", "batch_size")
    ),
    *(
        (
            REWARD,
            "pairs",
            {"heldout_fraction": share},
            f"pairs.heldout_fraction={share}: must be in (0, 1)",
        )
        for share in (0.0, 1.0)
    ),
    (
        REWARD,
        "pairs",
        {"centering_weight": -0.1},
        "pairs.centering_weight=-0.1: must be at least 0",
    ),
    (REWARD, None, {"seed": -1}, "seed=-1: must be at least 0"),
    (
        REWARD,
        None,
        {"model": dataclasses.replace(REWARD.model, dispatch="capacity", capacity_factor=1.0)},
        "model.dispatch='capacity': must be \"dropless\"",
    ),
    (
        REWARD,
        None,
        {"model": dataclasses.replace(REWARD.model, context_length=16)},
        "rollout.max_new_tokens=12: must be such that a prompt in whole blocks and its answer, "
        "24 tokens, fit model.context_length=16",
    ),
    (  # The row would fit, but not the cache of padded prompts.
        REWARD,
        None,
        {
            "model": dataclasses.replace(REWARD.model, context_length=16),
            "rollout": dataclasses.replace(REWARD.rollout, max_new_tokens=9),
        },
        "rollout.max_new_tokens=9: must be such that a prompt in whole blocks and its answer, "
        "17 tokens, fit model.context_length=16",
    ),
    (
        REWARD,
        None,
        {"optimizer": dataclasses.replace(REWARD.optimizer, warmup_steps=5)},
        "optimizer.warmup_steps=5: must be below the 5 updates of the run",
    ),
    (
        REWARD,
        None,
        {"mesh": dataclasses.replace(REWARD.mesh, exchange="bounded", rows_factor=2.0)},
        "mesh.exchange='bounded': must be \"exact\"",
    ),
    (
        REWARD,
        None,
        {"files": dataclasses.replace(REWARD.files, reward_from="runs/other")},
        "files.reward_from='runs/other': must be None with stage='reward'",
    ),
]


def broken_line(spec, node, changes, message):
    base = getattr(spec, node) if node else spec
    return rules.line_of_broken_rule(
        stage_spec, lambda: dataclasses.replace(base, **changes), message
    )


@pytest.mark.parametrize(
    ("spec", "node", "changes", "message"),
    BROKEN,
    ids=[f"{type(case[0]).__name__} {case[3]}" for case in BROKEN],
)
def test_a_broken_rule_names_key_value_and_what_is_allowed(spec, node, changes, message):
    broken_line(spec, node, changes, message)


def test_every_rule_has_an_example():
    # The call inside of a helper is reached by the lines that call the helper.
    assert {broken_line(*case) for case in BROKEN} == rules.lines_of_rules(stage_spec)


@pytest.mark.parametrize(
    ("pairs", "rollout"), [({"batch_size": 3}, {}), ({"num_sampled": 8}, {"num_prompts": 3})]
)
def test_batches_must_fit_the_mesh(pairs, rollout):
    """Those of pairs, and those that answers are drawn in."""
    mesh = {"data": 4}
    tiny.reward_spec(mesh=mesh, pairs={"num_sampled": 8})
    tiny.reward_spec(mesh=mesh, rollout={"num_prompts": 3})  # which nothing is drawn in
    with pytest.raises(ValueError, match=r"mesh.data \* mesh.expert=4: must be a divisor"):
        tiny.reward_spec(mesh=mesh, pairs=pairs, rollout=rollout)


def test_rows_hold_prompt_and_answer_in_whole_blocks():
    assert REWARD.rollout.num_rows == 8
    assert [REWARD.rollout.sequence_length(block) for block in (8, 19, 20)] == [24, 19, 20]
