"""The benchmark of presets at a preset's own small model."""

import io

import pytest
from rich import console as rich_console

from benchmarks import preset_experts

CONFIG = "experiments/configs/zero/base.py"


def test_a_way_changes_how_experts_are_computed_and_nothing_else():
    spec = preset_experts.load(CONFIG, num_layers=0)
    assert (spec.num_layers, spec.dispatch, spec.expert_kernel) == (3, "dropless", "auto")
    tight = preset_experts.with_way(spec, "capacity")
    assert (tight.dispatch, tight.capacity_factor) == ("capacity", preset_experts.FACTOR)
    assert preset_experts.with_way(tight, "auto") == spec
    assert preset_experts.load(CONFIG, num_layers=1).num_layers == 1


def test_a_dense_model_is_refused():
    with pytest.raises(ValueError, match="--config=.*: must be of a sparse model"):
        preset_experts.load(f"{CONFIG}:dense_active", num_layers=0)


def test_the_table_has_the_first_ways_time_over_each():
    def one(name, *, seconds, generating):
        rest = {"peak_bytes": 2e9, "loss": 1.5, "gradient_norm": 0.25}
        return {
            "name": name,
            "seconds": [9.0, seconds, 1e-6],
            "generating_seconds": generating,
        } | rest

    found = {
        "ways": [
            one("loop", seconds=4e-3, generating=3e-3),
            one("auto", seconds=1e-3, generating=2e-3),
            one("capacity", seconds=8e-3, generating=None),
        ],
        "config": CONFIG,
        "request": {"batch": 2, "length": 50, "sequences": 3},
        "made_with": {"device": "a", "jax": "b", "python": "c"},
    }
    console = rich_console.Console(file=io.StringIO(), width=140)
    preset_experts.report(console, found, preset_experts.load(CONFIG, num_layers=0))
    shown = [line.split() for line in console.file.getvalue().splitlines() if "GB" in line]
    rest = ["2.00", "GB", "1.5000", "0.2500"]
    assert shown == [
        ["loop", "4.00", "25,000", "1.00", *rest, "3.000", "1.00"],
        ["auto", "1.00", "100,000", "4.00", *rest, "2.000", "1.50"],
        ["capacity", "8.00", "12,500", "0.50", *rest],
    ]


@pytest.mark.deep
def test_what_it_measures():
    spec = preset_experts.load(CONFIG, num_layers=1)
    request = {"batch": 1, "length": 16, "warmup": 0, "steps": 2, "prompt": 16}
    request |= {"few": 2, "many": 6, "num_runs": 1}
    found = preset_experts.measure("loop", spec, request, num_sequences=1)
    assert found["name"] == "loop"
    assert len(found["seconds"]) == 2 and abs(found["generating_seconds"]) < 1.0
    # Float32: four bytes of each parameter and of each gradient.
    assert found["peak_bytes"] > 8 * found["num_parameters"]


def test_nothing_is_generated_with_a_capacity(monkeypatch):
    monkeypatch.setattr(preset_experts.model_step, "measure", lambda *_, **__: {"seconds": [1.0]})
    spec = preset_experts.with_way(preset_experts.load(CONFIG, num_layers=1), "capacity")
    found = preset_experts.measure("capacity", spec, {}, num_sequences=1)
    assert found["generating_seconds"] is None
