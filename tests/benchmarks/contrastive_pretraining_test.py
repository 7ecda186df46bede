"""The benchmark of the contrastive term: what it takes from runs that are there."""

import dataclasses
import io
import json
import sys

import pytest
from rich import console as rich_console

from benchmarks import contrastive_pretraining as benchmark
from experiments import settings


def plant(root, spec, *, name):
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "semantics.json").write_text("{}")
    content = dataclasses.asdict(spec)
    (directory / settings.FILE_NAME).write_text(json.dumps(content))


def test_a_run_of_other_settings_is_not_taken_for_one_of_these(tmp_path, monkeypatch):
    spec = benchmark._spec("", weight=None, seed=1)
    other = dataclasses.replace(spec, seed=0)
    name = f"laptop_weight_{spec.contrastive.weight:g}_seed_1"
    plant(tmp_path, other, name=name)
    monkeypatch.setattr(benchmark.recipe, "keep_programs", lambda root: None)
    monkeypatch.setattr(sys, "argv", ["program", f"--root={tmp_path}", "--seeds=1"])
    with pytest.raises(ValueError, match=f"{name}: a run of other settings"):
        benchmark.main()


def test_runs_of_two_variants_never_share_a_place():
    small, large = (benchmark._spec(each, weight=0.3, seed=0) for each in ("gpu_small", "gpu"))
    assert small != large
    assert small.contrastive.weight == large.contrastive.weight == 0.3
    assert benchmark._spec("gpu", weight=0.0, seed=2).contrastive.projection_dim == 0


def result(weight, seed, *, recall, loss):
    at = {"value": recall, "low": None, "high": None}
    bm25 = {"value": 0.5, "low": None, "high": None}
    return {
        "weight": weight,
        "seed": seed,
        "heldout_loss": loss,
        "num_documents": 7,
        "methods": [
            {"name": "last hidden state", "recall": {"1": at, "10": at}},
            {"name": "BM25 over words", "recall": {"1": bm25, "10": bm25}},
        ],
        "made_with": {"device_kind": "a device", "jax": "1", "python": "3"},
    }


def test_the_table_by_hand():
    console = rich_console.Console(file=io.StringIO(), width=120)
    benchmark.report(
        console,
        [
            result(0.0, 0, recall=0.1, loss=3.0),
            result(0.0, 1, recall=0.1, loss=3.0),
            result(0.3, 0, recall=0.2, loss=3.25),
            result(0.3, 1, recall=0.4, loss=3.75),
        ],
    )
    told = console.file.getvalue()
    line = next(line for line in told.splitlines() if "0.3: last hidden state" in line)
    # The mean of 20 and 40%, deviation 14.1; 0.6 of BM25's 50%; 0.5 nats more than 3.
    assert line.split()[4:7] == ["30.0", "+-", "14.1"]
    assert line.split()[-1] == "0.60"
    assert "0.5000 +- 0.3536 more than without the term" in told
    assert "7 held-out documents; a device, jax 1, Python 3" in told
