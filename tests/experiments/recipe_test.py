"""The recipe: its configs are valid runs, stages chain, and what is done is not done again."""

import json
import pathlib

import jax
import pytest

from deepseek_jax.core import accounting
from deepseek_jax.core.run_spec import RunSpec
from experiments import recipe, recipe_report, settings
from experiments.configs.zero import shared

SMALL = {
    "model.num_layers": 1,
    "model.model_dim": 16,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 8,
    "model.num_experts": 4,
    "model.num_groups": 2,
    "model.top_groups": 1,
    "model.expert_hidden_dim": 8,
}
PROBLEMS = {
    "problems.num_text": 400,
    "problems.num_reward": 40,
    "problems.num_policy": 30,
    "problems.num_validation": 10,
    "problems.num_test": 12,
}
# An untrained base answers nothing rightly, so the pairs are built ones.
CHANGES = {
    "problems": PROBLEMS,
    "base": {
        **SMALL,
        "optimizer.warmup_steps": 1,
        "train.num_steps": 2,
        "train.eval_every": 2,
        "train.eval_rows": 2,
        "train.checkpoint_every": 2,
        "train.log_every": 1,
    },
    "reward": {
        **SMALL,
        "pairs.num_sampled": 0,
        "pairs.num_built": 40,
        "pairs.batch_size": 4,
        "train.num_steps": 2,
        "train.eval_every": 2,
        "train.checkpoint_every": 2,
    },
    "ppo": {
        **SMALL,
        "rollout.num_prompts": 4,
        "train.num_steps": 2,
        "train.eval_every": 2,
        "train.checkpoint_every": 2,
    },
}


@pytest.mark.parametrize("stage", recipe.STAGES, ids=lambda stage: stage.name)
def test_every_stage_has_valid_settings_below_its_seed(stage, tmp_path):
    spec = recipe.stage_settings(stage, tmp_path / "seed_7", 7)
    assert spec.seed == 7
    assert settings.freeze(settings.to_dict(spec)) == spec
    assert shared.ROOT not in json.dumps(settings.to_dict(spec))


def test_the_model_is_the_real_one():
    """Routed experts in groups; blocks of attention shorter than the answers."""
    spec = settings.freeze(settings.load_config("experiments/configs/zero/base.py")).model
    assert spec.num_experts > spec.top_k and spec.num_groups > spec.top_groups > 1
    assert spec.attention == "local_global" and spec.block_size < len("<>1+7=8;4+6+1=11;9+3+1=13")
    assert 1e6 < accounting.count_parameters(spec).total < 2e6


def test_stages_name_the_stages_before_them():
    names = [stage.name for stage in recipe.STAGES]
    for stage in recipe.STAGES:
        spec = recipe.stage_settings(stage, pathlib.Path("/seed"), 0)
        text = json.dumps(settings.to_dict(spec))
        for other in names:
            if f'"/seed/{other}' in text:
                assert names.index(other) < names.index(stage.name)
    assert set(recipe.ARMS["demo"]) < set(recipe.ARMS["all"]) == set(names)


@pytest.fixture
def small(monkeypatch):
    """The recipe at a size of seconds."""
    load = settings.load_config

    def load_small(name):
        config = load(name)
        stage = pathlib.Path(name.partition(":")[0]).stem
        config.update_from_flattened_dict(CHANGES[stage])
        return config

    monkeypatch.setattr(settings, "load_config", load_small)


@pytest.mark.slow
def test_a_recipe_that_is_killed_between_stages_goes_on_with_the_right_one(
    small, monkeypatch, tmp_path
):
    names = recipe.ARMS["demo"]
    run = recipe._run
    done = []

    def run_or_die(stage, directory, seed):
        if stage.name == "ppo" and "died" not in done:
            done.append("died")
            raise KeyboardInterrupt
        run(stage, directory, seed)

    monkeypatch.setattr(recipe, "_run", run_or_die)
    with pytest.raises(KeyboardInterrupt):
        recipe.recipe(tmp_path, (3,), names)
    seed = tmp_path / "seed_3"
    kept = [seed / "problems/facts.json", seed / "base/metrics.jsonl", seed / "reward/pairs.npz"]
    before = [path.stat().st_mtime_ns for path in kept]
    assert not (seed / "ppo").exists()
    recipe.recipe(tmp_path, (3,), names)
    assert [path.stat().st_mtime_ns for path in kept] == before
    page = (seed / "report.md").read_text()
    assert "base" in page and "PPO, learned reward" in page and "GRPO" not in page
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table["arms"]) == ["base", "ppo_learned"] and table["seeds"] == [3]
    seconds = json.loads((seed / recipe_report.SECONDS).read_text())
    assert set(seconds) == set(names)


def test_the_supervised_arm_scores_answers_alone_and_starts_from_the_base():
    spec = settings.freeze(settings.load_config("experiments/configs/zero/supervised.py"))
    assert isinstance(spec, RunSpec)
    assert spec.data.prompt_field == "prompt"
    assert spec.train.start_from == f"{shared.ROOT}/base"


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_compiled_programs_are_kept_in_the_root_unless_the_user_says_where(
    tmp_path: pathlib.Path, chosen: str | None
) -> None:
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", chosen)
        recipe.keep_programs(tmp_path)
        assert jax.config.jax_compilation_cache_dir == (chosen or str(tmp_path / "compiled"))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
