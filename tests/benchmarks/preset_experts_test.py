"""The benchmark of presets at a preset's own small model."""

import io
import sys

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


@pytest.mark.deep
def test_it_measures_steps_and_generating_and_shows_ratios_to_the_first_way(monkeypatch, tmp_path):
    shown = io.StringIO()
    console = rich_console.Console(file=shown, width=120)
    monkeypatch.setattr(preset_experts.rich_console, "Console", lambda width: console)
    path = tmp_path / "figures.json"
    flags = ["--layers=1", "--rows=1", "--length=16", "--steps=1", "--sequences=1"]
    flags += ["--ways=loop,capacity", f"--config={CONFIG}", f"--out={path}"]
    monkeypatch.setattr(sys, "argv", ["preset_experts", *flags])
    preset_experts.main()
    loop, capacity = (line.split() for line in shown.getvalue().splitlines() if "GB" in line)
    assert (loop[0], loop[3], loop[-1]) == ("loop", "1.00", "1.00")
    # With a capacity nothing is generated, and a loss of the same parameters is about the same.
    assert capacity[0] == "capacity" and len(capacity) == len(loop) - 2
    assert abs(float(loop[6]) - float(capacity[6])) < 0.1
    assert path.exists()
