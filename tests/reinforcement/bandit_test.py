"""PPO and GRPO on a bandit: whole iterations, the sampler in the loop, a reward that is easy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.reinforcement import learner
from tests.reinforcement import tiny

pytestmark = pytest.mark.deep

COMMON = {
    "model": tiny.DENSE,
    "files": {"reward_from": None},
    "rewards": {"learned": 0.0, "right": 1.0, "format": 0.0},
    "rollout": {"num_prompts": 8, "samples_per_prompt": 4, "max_new_tokens": 4},
    "optimizer": {"learning_rate": 2e-2},
    "train": {"num_steps": 12},
    "kl": {"coefficient": 0.0},
    "update": {"num_epochs": 1},
}
BEST = 11


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_the_reward_rises(stage):
    """An answer earns 1 if its second token is the best one of 16: drawn, that is 1 of 16."""
    spec = {"ppo": tiny.ppo_spec, "grpo": tiny.grpo_spec}[stage](**COMMON)
    halves, state, _ = tiny.build(spec)

    def collect(state, prompts):
        drawn, verdict = halves.collect(state, prompts)
        is_best = (drawn.responses[:, 1] == BEST) & drawn.response_mask[:, 1]
        return drawn, verdict._replace(is_right=is_best)

    iteration = learner.make_iteration(halves._replace(collect=collect), shardings=None)
    state, earned = tiny.copied(state), []
    for _ in range(spec.train.num_steps):
        state, told = iteration(state, tiny.prompts(8), None)
        earned.append(float(told["reward"]))
        assert float(told["logprob_mismatch"]) < 1e-4
    assert np.mean(earned[:3]) < 0.25 and np.mean(earned[-3:]) > 0.6, earned
    if stage == "ppo":  # the critic has learned what to expect
        assert float(told["explained_variance"]) > -1.0
        assert bool(jnp.isfinite(jax.tree.leaves(state.critic.params)[0]).all())
