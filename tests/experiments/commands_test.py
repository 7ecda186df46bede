"""The commands a user starts, on a model small enough for seconds, and every preset, shrunk."""

import io
import json
import subprocess
import sys

import jax
import pytest
from rich import console as rich_console

from deepseek_jax.training import loop
from experiments import evaluate, main, settings, trained

# What a preset becomes for a smoke run: its structure stays, its sizes shrink.
SMALL_MODEL = {
    "vocab_size": 320,
    "context_length": 256,
    "num_layers": 2,
    "model_dim": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "block_size": 16,
    "expert_hidden_dim": 8,
}
SMALL_TRAINING = {
    "num_steps": 2,
    "batch_size": 2,
    "log_every": 1,
    "eval_every": 2,
    "eval_rows": 2,
    "checkpoint_every": 2,
}


def shrunk(name, text_folder):
    """The settings of a preset with small sizes, on the text files of a folder."""
    config = settings.load_config(name)
    model = dict(SMALL_MODEL, num_summaries=min(config.model.num_summaries, 2))
    if config.model.num_experts > 1:  # two experts a group; the preset's groups stay
        model["num_experts"] = 2 * config.model.num_groups
    config.model.update(model)
    config.data.update(
        source="folder", path=str(text_folder), bpe_vocab_size=320, sequence_length=32
    )
    config.data.heldout_fraction = 0.2
    config.train.update(SMALL_TRAINING)
    config.train.num_microbatches = min(config.train.num_microbatches, 2)
    config.optimizer.warmup_steps = 1
    config.eval.update(num_rows=4, batch_size=2, sample_tokens=8)
    return settings.freeze(config)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(10):
        lines = [f"line {k} of text {number}: {k * number % 7} + {k}" for k in range(60)]
        (folder / f"{number}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def finished(text_folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "laptop"
    run_spec = shrunk("experiments/configs/laptop.py", text_folder)
    main.main(run_spec, workdir)
    return workdir


@pytest.mark.deep
@pytest.mark.parametrize(
    "name",
    [
        "laptop.py:dense_active",
        "gpu_small.py",
        "r1_12b.py:top2",
        "dense_12b.py",
    ],
)
def test_every_preset_trains_when_shrunk(name, text_folder, tmp_path):
    run_spec = shrunk(f"experiments/configs/{name}", text_folder)
    quiet = rich_console.Console(file=io.StringIO())
    outcome = loop.train(run_spec, tmp_path / "run", flops_per_token=None, console=quiet)
    assert (outcome.step, outcome.trained) == (2, 2)
    lines = trained.read_metrics(tmp_path / "run", step=2)
    assert {line["step"] for line in lines} == {1, 2}
    assert all(line["loss"] > 0 for line in lines if "loss" in line)


@pytest.mark.deep
def test_a_finished_run_is_not_trained_again(finished, text_folder):
    before = (finished / "metrics.jsonl").read_bytes()
    main.main(shrunk("experiments/configs/laptop.py", text_folder), finished)
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.deep
def test_evaluate_writes_a_report_of_the_run(finished):
    run = trained.open_run(finished)
    assert run.step == 2
    evaluate.main(finished, run)
    numbers = json.loads((finished / "report.json").read_text())
    text = (finished / "report.md").read_text()
    bits = numbers["heldout"]["bits_per_byte"]["value"]
    assert f"{bits:.3f}" in text
    for name in ("loss.png", "expert_load.png", "router.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
        assert name in text
    experts = numbers["experts"]
    assert experts["num_experts"] == run.run_spec.model.num_experts


@pytest.mark.deep
def test_continuations_repeat_with_their_key(finished):
    run = trained.open_run(finished)

    def text(seed):
        pieces = trained.continuation(
            run, "line 3", jax.random.key(seed), max_new_tokens=12, temperature=1.0, top_p=0.9
        )
        return "".join(pieces)

    assert text(0) == text(0)
    assert text(0) != text(1)


@pytest.mark.deep
def test_generate_streams_from_the_command_line(finished):
    command = [sys.executable, "-m", "experiments.generate", f"--workdir={finished}"]
    command += ["--prompt=line 3", "--max_new_tokens=5", "--temperature=0"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith("line 3")
    missing = subprocess.run(
        [*command[:3], "--workdir=runs/nowhere"], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert "runs/nowhere/config.json: no such file" in missing.stderr
