"""The real command of a policy's stage, killed while it starts, runs and saves."""

import pprint
import signal

import chex
import pytest

from deepseek_jax.reinforcement import policy_stage
from deepseek_jax.training import checkpoint
from experiments import settings
from tests import kills
from tests.reinforcement import tiny

pytestmark = pytest.mark.slow

NUM_STEPS = 40
CONFIG = """from ml_collections import config_dict


def get_config(variant=""):
    return config_dict.ConfigDict({})
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Problems, a base, and the config files of PPO and GRPO from it by the rule."""
    directory = tmp_path_factory.mktemp("zero")
    tiny.write_problems(directory / "problems")
    tiny.train_base(directory / "problems", directory / "base", num_steps=100)
    for stage in ("ppo", "grpo"):
        node = pprint.pformat(settings.to_dict(_spec(directory, stage)))
        (directory / f"{stage}.py").write_text(CONFIG.replace("{}", node))
    return directory


def _spec(root, stage):
    make = {"ppo": tiny.ppo_spec, "grpo": tiny.grpo_spec}[stage]
    return make(
        model=tiny.WIDE,
        rollout={"prompt_width": 7, "max_new_tokens": 17},
        rewards={"learned": 0.0},
        files={
            "problems": str(root / "problems"),
            "start_from": str(root / "base"),
            "reward_from": None,
        },
        train={"num_steps": NUM_STEPS, "eval_every": 20, "checkpoint_every": 1},
    )


def _start(root, stage, workdir):
    return kills.start(workdir, root / "cache", f"--config={root / stage}.py")


def _finish(process, workdir):
    assert process.wait(kills.TIME_LIMIT) == 0, kills.log_of(workdir).read_text()


def _kill_when(process, workdir, seen):
    """SIGKILL as soon as `seen()` holds; the process must not have ended before."""
    assert kills.wait_for(process, seen), kills.log_of(workdir).read_text()
    assert kills.kill(process) == -signal.SIGKILL


def _final(root, stage, workdir):
    """The whole state after the last step."""
    abstract = policy_stage._build(_spec(root, stage))[0].abstract
    keeper = checkpoint.Checkpoints(workdir / "checkpoints", keep=9)
    try:
        return keeper.restore(abstract, step=None).state
    finally:
        keeper.close()


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_killed_stage_equals_uninterrupted_stage(root, stage):
    whole, killed = root / f"{stage}_whole", root / f"{stage}_killed"
    _finish(_start(root, stage, whole), whole)

    process = _start(root, stage, killed)
    _kill_when(process, killed, lambda: (killed / "config.json").exists())  # it compiles
    process = _start(root, stage, killed)
    _kill_when(process, killed, lambda: kills.newest(killed) >= 3)  # it runs
    first = kills.newest(killed)
    process = _start(root, stage, killed)
    _kill_when(process, killed, lambda: kills.is_caught_saving(process, killed, after=first))
    second = kills.newest(killed)
    _finish(_start(root, stage, killed), killed)

    log = kills.log_of(killed).read_text()
    assert 3 <= first < second < NUM_STEPS
    assert f"going on from step {first}" in log and f"going on from step {second}" in log
    assert "unfinished save, passed over" in log
    one, two = (_final(root, stage, workdir) for workdir in (killed, whole))
    chex.assert_trees_all_equal(one, two)
    assert int(one.step) == NUM_STEPS
    assert tiny.lines(killed) == tiny.lines(whole)
