"""Every rule of the specs of policies: a bad setting is refused by name and value."""

import dataclasses

import pytest

from deepseek_jax.core import policy_spec
from tests.core import rules
from tests.reinforcement import tiny

PPO, GRPO = tiny.ppo_spec(), tiny.grpo_spec()
ADAPTIVE = dataclasses.replace(PPO.kl, target=1.0, horizon=10.0)
BROKEN = [  # spec, node, changes, what the message starts with
    *(
        (PPO, "rewards", {name: -1.0}, f"rewards.{name}=-1.0: must be at least 0")
        for name in ("learned", "right", "format")
    ),
    (
        PPO,
        "rewards",
        {"learned": 0.0, "right": 0.0, "format": 0.0},
        "rewards.right=0.0: must be above 0 where nothing else is rewarded",
    ),
    (PPO, "kl", {"coefficient": -0.1}, "kl.coefficient=-0.1: must be at least 0"),
    (PPO, "kl", {"target": 1.0}, "kl.horizon=None: must be given if and only if kl.target is"),
    (PPO, "kl", {"horizon": 9.0}, "kl.horizon=9.0: must be given if and only if kl.target is"),
    (PPO, "kl", {"target": 0.0, "horizon": 9.0}, "kl.target=0.0: must be above 0"),
    (PPO, "kl", {"target": 1.0, "horizon": 0.0}, "kl.horizon=0.0: must be above 0"),
    (
        PPO,
        "kl",
        {"target": 1.0, "horizon": 9.0, "coefficient": 0.0},
        "kl.coefficient=0.0: must be above 0 to adapt",
    ),
    (PPO, "update", {"clip": 0.0}, "update.clip=0.0: must be above 0"),
    (PPO, "update", {"num_epochs": 0}, "update.num_epochs=0: must be at least 1"),
    (PPO, "update", {"num_minibatches": 0}, "update.num_minibatches=0: must be at least 1"),
    *(
        (PPO, "critic", {name: 1.1}, f"critic.{name}=1.1: must be in [0, 1]")
        for name in ("discount", "gae_lambda")
    ),
    (PPO, "critic", {"value_clip": 0.0}, "critic.value_clip=0.0: must be above 0"),
    (PPO, "critic", {"learning_rate": 0.0}, "critic.learning_rate=0.0: must be above 0"),
    (
        PPO,
        None,
        {"kl": dataclasses.replace(ADAPTIVE, horizon=1.5)},
        "kl.horizon=1.5: must be at least 1.6, a fifth of the answers of an iteration",
    ),
    *(
        (
            spec,
            None,
            {"update": dataclasses.replace(spec.update, num_minibatches=3)},
            "update.num_minibatches=3: must be a divisor of the 8 answers of an iteration",
        )
        for spec in (PPO, GRPO)
    ),
    (
        PPO,
        None,
        {"mesh": dataclasses.replace(PPO.mesh, exchange="bounded", rows_factor=2.0)},
        "mesh.exchange='bounded': must be \"exact\"",
    ),
    (
        PPO,
        None,
        {"files": dataclasses.replace(PPO.files, reward_from=None)},
        "files.reward_from=None: must be given if and only if rewards.learned is above 0",
    ),
    (
        GRPO,
        None,
        {"rewards": dataclasses.replace(GRPO.rewards, learned=0.0)},
        "files.reward_from='unset': must be given if and only if rewards.learned is above 0",
    ),
    (
        GRPO,
        None,
        {"rollout": dataclasses.replace(GRPO.rollout, samples_per_prompt=1)},
        "rollout.samples_per_prompt=1: must be at least 2",
    ),
    (
        GRPO,
        None,
        {"kl": dataclasses.replace(GRPO.kl, place="reward")},
        "kl.place='reward': must be \"loss\"",
    ),
    (
        GRPO,
        None,
        {"kl": dataclasses.replace(ADAPTIVE, place="loss")},
        "kl.target=1.0: must be None (fixed) for GRPO",
    ),
]


def broken_line(spec, node, changes, message):
    base = getattr(spec, node) if node else spec
    return rules.line_of_broken_rule(
        policy_spec, lambda: dataclasses.replace(base, **changes), message
    )


@pytest.mark.parametrize(
    ("spec", "node", "changes", "message"),
    BROKEN,
    ids=[f"{case[0].stage} {case[3]}" for case in BROKEN],
)
def test_a_broken_rule_names_key_value_and_what_is_allowed(spec, node, changes, message):
    broken_line(spec, node, changes, message)


def test_every_rule_has_an_example():
    assert {broken_line(*case) for case in BROKEN} == rules.lines_of_rules(policy_spec)


@pytest.mark.parametrize("spec", [PPO, GRPO], ids=["ppo", "grpo"])
def test_the_rules_of_all_stages_hold(spec):
    with pytest.raises(ValueError, match="seed=-1: must be at least 0"):
        dataclasses.replace(spec, seed=-1)
    late = dataclasses.replace(spec.optimizer, warmup_steps=20)
    with pytest.raises(ValueError, match="warmup_steps=20: must be below the 20 updates"):
        dataclasses.replace(spec, optimizer=late)  # 5 iterations of 2 epochs of 2 parts


@pytest.mark.parametrize("spec", [PPO, GRPO], ids=["ppo", "grpo"])
def test_a_minibatch_must_fit_the_mesh(spec):
    mesh = dataclasses.replace(spec.mesh, data=4)
    assert dataclasses.replace(spec, mesh=mesh).mesh.data == 4
    with pytest.raises(ValueError, match=r"mesh.data \* mesh.expert=8: must be a divisor"):
        dataclasses.replace(spec, mesh=dataclasses.replace(mesh, data=8))


def test_updates_of_an_iteration():
    assert PPO.update.num_updates == 4
