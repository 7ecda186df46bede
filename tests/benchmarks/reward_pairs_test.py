"""The table and the picture of `benchmarks.reward_pairs`, from made-up reward models."""

import pathlib

import pytest
from rich import console as rich_console

from benchmarks import reward_pairs
from deepseek_jax.evaluation import accuracy
from deepseek_jax.evaluation.recipe_findings import PairKind, RewardModel


def found(num_pairs, *num_right):
    names = ("worked against slip", "direct against guess")
    kinds = tuple(
        PairKind(name, accuracy.share(right, 100), None)
        for name, right in zip(names, num_right, strict=True)
    )
    model = RewardModel(
        pairs=accuracy.share(90, 100),
        pairs_are="built pairs",
        num_train_pairs=num_pairs,
        calibration_error=0.0,
        num_bins=1,
        bins=(),
        kinds=kinds,
        kinds_are="",
    )
    return reward_pairs.Found(num_pairs, model, accuracy.share(7, 10), (0.25, 0.75))


FOUND = {"recipe": found(10, 50, 20), "few": found(100, 60, 70), "many": found(9000, 99, 95)}


def test_the_table_has_the_pairing_that_is_told_worst():
    console = rich_console.Console(width=120)
    with console.capture() as captured:
        reward_pairs._show(FOUND, console)
    listed = captured.get().splitlines()
    lines = {line.strip("\u2502 ").split("\u2502")[0].strip(): line for line in listed}
    assert [one.lowest for one in FOUND.values()] == [0.2, 0.6, 0.95]
    assert all(value in lines["lowest of all"] for value in ("20.0%", "60.0%", "95.0%"))
    assert "50.0%" in lines["worked against slip"]
    assert lines["PPO without KL: right answers"].count("70.0%") == 3
    assert "0.25, 0.75" in lines["its score, first and last"]


def test_the_picture_leaves_the_recipes_own_model_out(tmp_path, monkeypatch):
    seen = []
    save = reward_pairs.drawing.save
    monkeypatch.setattr(
        reward_pairs.drawing, "save", lambda figure, path: (seen.append(figure), save(figure, path))
    )
    reward_pairs._draw(FOUND, tmp_path / "x.png")
    (axes,) = seen[0].axes
    assert [list(line.get_xdata()) for line in axes.lines[:3]] == [[100, 9000]] * 3
    assert list(axes.lines[0].get_ydata()) == [0.6, 0.99]
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_numbers_that_do_not_pair_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--pairs has 1 numbers and --steps 2"):
        reward_pairs.run(pathlib.Path("none"), tmp_path, [1], [1, 2], 8)
    assert not list(tmp_path.iterdir())
