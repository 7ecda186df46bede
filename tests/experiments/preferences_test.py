"""The program on a run of a few steps: every figure is one that can be counted again."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from deepseek_jax.data import given, tokenizers
from deepseek_jax.reinforcement import pair_stage, preference_stage
from experiments import preferences, settings
from tests.reinforcement import preference_stage_test as stage_test
from tests.reinforcement import tiny


@pytest.mark.deep
def test_the_page_of_a_run(tmp_path, capsys):
    tiny.write_problems(tmp_path / "problems")
    tiny.train_base(tmp_path / "problems", tmp_path / "base")
    path = stage_test.write(tmp_path / "pairs.jsonl")
    spec = stage_test.spec_of(path, files={"start_from": str(tmp_path / "base")})
    run = tmp_path / "run"
    preference_stage.train(spec, run, console=tiny.QUIET)
    path.unlink()  # The run is enough.
    preferences.main(run, preferences.load_run_spec(run), None)
    content = json.loads((run / "preferences.json").read_text())
    lines = tiny.lines(run)
    assert content["accuracy"]["value"] == pytest.approx(lines[-1]["heldout_pair_accuracy"])
    assert (content["step"], content["num_heldout"]) == (5, 30)
    assert content["on_both_sides"] == {"openings": 0, "texts": 0}
    pairs = [json.loads(line) for line in stage_test.write(path).read_text().splitlines()]
    table = pair_stage.read(run)
    texts = preferences.texts_of(table.heldout, tokenizers.load(run / "tokenizer.json"))
    listed = {(pair["chosen"], pair["rejected"]) for pair in pairs}
    assert set(zip(*texts, strict=True)) <= listed
    longer = np.mean([len(first) > len(second) for first, second in zip(*texts, strict=True)])
    assert content["rules"][0]["accuracy"]["value"] == pytest.approx(longer)
    assert content["base"]["num_ties"] < 30
    assert (run / "reliability.png").stat().st_size > 0
    assert content["verdict"] in (run / "preferences.md").read_text()
    assert content["verdict"].split(";")[0][:40] in capsys.readouterr().out


@pytest.mark.deep
def test_no_data_is_one_line_before_anything_is_made(tmp_path):
    config = "--config=experiments/configs/preferences.py:laptop"
    command = [sys.executable, "-m", "experiments.main", config, f"--workdir={tmp_path / 'run'}"]
    environment = {key: os.environ[key] for key in os.environ if key != given.FOLDER_VARIABLE}
    refused = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert refused.returncode == 2 and not (tmp_path / "run").exists()
    assert refused.stderr.startswith("error: files.pairs=None: DEEPSEEK_JAX_DATA is not set")
    assert refused.stderr.count("\n") == 1


def test_another_kind_of_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings.to_dict(tiny.reward_spec())))
    with pytest.raises(ValueError, match='another kind than stage="preferences"'):
        preferences.load_run_spec(tmp_path)
