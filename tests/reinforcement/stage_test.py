"""Whole tiny stages in this process: resumed equals uninterrupted; every refusal by its name."""

import dataclasses
import os
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from deepseek_jax.reinforcement import drawing, pair_stage, pairs, policy_stage, reward_stage
from deepseek_jax.training import checkpoint, stage_loop
from deepseek_jax.training.loop import Outcome
from tests.reinforcement import tiny

pytestmark = pytest.mark.deep

SHORT = {"prompt_width": 7, "max_new_tokens": 17}  # of 12+34= and <answer>46</answer>
STAGES = ("reward", "ppo", "grpo")


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Every run of this file compiles the same few programs."""
    names = {
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir
        or str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Problems, and a base that has learned to end its answers."""
    directory = tmp_path_factory.mktemp("zero")
    tiny.write_problems(directory / "problems")
    tiny.train_base(directory / "problems", directory / "base", num_steps=100)
    return directory


def _spec(root, stage, *, rule=False, **changes):
    files = {"problems": str(root / "problems"), "start_from": str(root / "base")}
    nodes = {
        "model": tiny.WIDE,
        "rollout": SHORT | ({"max_new_tokens": 25} if stage == "reward" else {}),
        "train": {"keep_checkpoints": 9},
    }
    for node, values in changes.items():
        nodes[node] = nodes.get(node, {}) | values
    if stage == "reward":
        nodes["files"] = files
        return tiny.reward_spec(**nodes)
    nodes["update"] = {"num_epochs": 1} | nodes.get("update", {})
    if rule:
        files["reward_from"] = None
        nodes["rewards"] = {"learned": 0.0}
    else:
        files["reward_from"] = str(root / "reward")
    nodes["files"] = files
    return {"ppo": tiny.ppo_spec, "grpo": tiny.grpo_spec}[stage](**nodes)


def _train(spec, directory):
    train = reward_stage.train if spec.stage == "reward" else policy_stage.train
    return train(spec, directory, console=tiny.QUIET)


@pytest.fixture(scope="module")
def whole(root):
    """A run of each stage that was never stopped."""
    for stage in STAGES:
        assert _train(_spec(root, stage), root / stage) == Outcome(5, 5, None)
    return root


def _stop_at(monkeypatch, number):
    """Sends this process SIGTERM while step `number` runs; returns a list of the stages."""
    run, seen = stage_loop.run, []

    def stopping(stage, *args, **kwargs):
        def advance(state, step):
            if not seen[1:] and step + 1 == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return stage.advance(state, step)

        seen.append(stage)
        return run(stage._replace(advance=advance), *args, **kwargs)

    monkeypatch.setattr(stage_loop, "run", stopping)
    return seen


def _saved(directory, abstract):
    keeper = checkpoint.Checkpoints(directory / "checkpoints", keep=9)
    try:
        return keeper.restore(abstract, step=None).state
    finally:
        keeper.close()


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_and_resumed_equals_uninterrupted(whole, stage, tmp_path, monkeypatch):
    spec = _spec(whole, stage)
    seen = _stop_at(monkeypatch, 3)  # between two checkpoints
    outcome = _train(spec, tmp_path)
    assert (outcome.step, outcome.stopped_by) == (3, signal.SIGTERM)
    assert _train(spec, tmp_path) == Outcome(5, 2, None)
    one, two = (_saved(each, seen[0].abstract) for each in (tmp_path, whole / stage))
    chex.assert_trees_all_equal(one, two)
    assert int(one.step) == 5
    assert tiny.lines(tmp_path) == tiny.lines(whole / stage)
    if stage == "ppo":
        assert int(one.critic.step) == 5
        np.testing.assert_array_equal(
            jax.random.key_data(one.key), jax.random.key_data(jax.random.key(5))
        )


def test_what_the_stages_leave(whole):
    reward, ppo, grpo = (tiny.lines(whole / stage) for stage in STAGES)
    for lines in (reward, ppo, grpo):
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    measured = [[("heldout_accuracy" in line) for line in lines] for lines in (ppo, grpo)]
    assert measured == [[False, True, False, True, True]] * 2
    assert [("heldout_pair_accuracy" in line) for line in reward] == measured[0]
    for lines in (ppo, grpo):
        assert max(line["finished_rate"] for line in lines) > 0.5  # so that there are scores
        assert max(line["reward"] for line in lines) > 0.1
        assert all(line["logprob_mismatch"] < 1e-4 for line in lines)
        assert lines[0]["kl"] == 0.0 and any(line["kl"] != 0.0 for line in lines[1:])
        assert all(line["gradient_norm"] > 0.0 for line in lines)
    assert "explained_variance" in ppo[0] and "silent_groups" in grpo[0]


def test_pairs_are_of_disjoint_problems(whole):
    table = pair_stage.read(whole / "reward")
    assert len(table.train.chosen) + len(table.heldout.chosen) == 20
    train, heldout = (set(part.problem_ids.tolist()) for part in table)
    assert not train & heldout and len(heldout) == 4 and len(train) == 12


def test_pairs_of_another_attempt_are_not_taken(whole, tmp_path, monkeypatch):
    """As after settings that failed between the pairs and the first step."""
    shutil.copy(whole / "reward" / "pairs.npz", tmp_path)
    few = _spec(whole, "reward", pairs={"num_built": 8})
    _stop_at(monkeypatch, 1)
    assert _train(few, tmp_path).step == 1
    table = pair_stage.read(tmp_path)
    assert len(table.train.chosen) + len(table.heldout.chosen) == 8
    # Few pairs are of the first problems, of which not all are held out.
    assert 0 < len(table.heldout.chosen) < 8


def test_pairs_that_the_base_drew(whole, tmp_path, monkeypatch):
    answer_all = drawing.answer_all

    def judged(*args, **kwargs):
        found = answer_all(*args, **kwargs)
        return found._replace(is_right=found.responses[:, 1] % 2 == 0)

    monkeypatch.setattr(drawing, "answer_all", judged)
    changes = {
        "pairs": {
            "num_sampled": 9,
            "num_built": 0,
            "pairs_per_problem": 2,
            "heldout_fraction": 0.5,
        },
        "rollout": {"num_prompts": 3, "samples_per_prompt": 4},
    }
    spec = _spec(whole, "reward", **changes)
    _stop_at(monkeypatch, 1)
    _train(spec, tmp_path)
    made = pairs.joined(list(pair_stage.read(tmp_path)))
    assert len(made.chosen) == 9
    ends = {side: getattr(made, side) for side in ("chosen", "rejected")}
    at = (ends["chosen"] == ord("=")).argmax(axis=1)
    for i, problem in enumerate(made.problem_ids):
        prompts = [rows[i, : at[i] + 1].tolist() for rows in ends.values()]
        assert prompts[0] == prompts[1], problem  # two answers to one problem
    with pytest.raises(ValueError, match="pairs.num_sampled=900: the 16 problems of the split"):
        _train(
            _spec(whole, "reward", **changes | {"pairs": {"num_sampled": 900, "num_built": 0}}),
            tmp_path / "b",
        )


@pytest.mark.slow
def test_a_task_that_is_verified_on_the_host(whole, tmp_path, monkeypatch):
    problems = tiny.write_problems(
        tmp_path / "countdown", task="countdown", min_size=2, max_size=2, num_text=20
    )
    told = []

    def verify_texts(responses, mask, is_finished, asked, tokenizer):
        assert len(responses) == len(asked) == 8 and {each.task for each in asked} == {"countdown"}
        texts = [tokenizer.decode(row[kept]) for row, kept in zip(responses, mask, strict=True)]
        told.append(([each.prompt for each in asked], texts))
        return np.arange(8) % 4 == 0

    monkeypatch.setattr(drawing, "verify_texts", verify_texts)
    spec = _spec(whole, "grpo", rule=True, rollout={"prompt_width": 15})
    spec = dataclasses.replace(spec, files=dataclasses.replace(spec.files, problems=str(problems)))
    _stop_at(monkeypatch, 2)
    assert _train(spec, tmp_path / "run").step == 2
    lines = tiny.lines(tmp_path / "run")
    assert [line["accuracy"] for line in lines] == [0.25, 0.25]
    assert lines[1]["heldout_accuracy"] == 0.25
    assert [line["silent_groups"] for line in lines] == [0.5, 0.5]
    asked = told[0][0]
    assert asked[0::2] == asked[1::2] and len(set(asked)) == 4  # copies side by side


@pytest.mark.slow
def test_other_inputs_are_refused_by_name(whole, tmp_path, monkeypatch):
    for name in ("problems", "base", "reward"):
        shutil.copytree(whole / name, tmp_path / name)
    spec, run = _spec(tmp_path, "grpo"), tmp_path / "run"
    _stop_at(monkeypatch, 1)
    assert _train(spec, run).step == 1

    def refused(name, replacement, message):
        kept = tmp_path / "kept"
        (tmp_path / name).rename(kept)
        shutil.copytree(replacement, tmp_path / name)
        with pytest.raises(ValueError, match=message):
            _train(spec, run)
        shutil.rmtree(tmp_path / name)
        kept.rename(tmp_path / name)

    refused("base", tiny.train_base(whole / "problems", tmp_path / "other"), "began with start_fro")
    others = tiny.write_problems(tmp_path / "others", seed=4)
    refused("problems", others, "the run began with problems")
    (others / "policy.jsonl").write_text((whole / "problems" / "policy.jsonl").read_text())
    refused("problems", others, r"policy\.jsonl: sha256 .* the file was changed")
    earlier = tmp_path / "earlier"
    shutil.copytree(whole / "reward", earlier)
    shutil.rmtree(earlier / "checkpoints" / "step_00000005")
    (earlier / "checkpoints" / "sealed.json").write_text("[2, 4]")
    refused("reward", earlier, "the run began with reward_from")
    assert _train(spec, run) == Outcome(5, 4, None)


def test_what_does_not_fit_is_refused_before_anything_is_written(whole, tmp_path):
    cases = {
        "rollout.prompt_width=5: a prompt has 7 tokens": {"rollout": {"prompt_width": 5}},
        "answer_width=1": {"rollout": {"answer_width": 1}},
        "params.embed.embedding": {"model": {"model_dim": 32}},
    }
    for message, changes in cases.items():
        with pytest.raises(ValueError, match=message):
            _train(_spec(whole, "grpo", rule=True, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    missing = _spec(tmp_path, "grpo", rule=True)
    with pytest.raises(FileNotFoundError, match="base"):
        _train(missing, tmp_path / "run")
