"""Pictures of a decent size; what was not measured is skipped, and nothing at all is refused."""

import numpy as np
import pytest

from deepseek_jax.evaluation import accuracy, calibration, history, policy_plots
from deepseek_jax.evaluation.policy_plots import StageRow

RECORDS = [
    {
        "iteration": i,
        "reward": 0.3 + 0.03 * i,
        "accuracy": 0.9 - 0.05 * i,
        "kl": 0.1 * i,
        "entropy": 0.3 / (1 + i),
        "clip_fraction": 0.1,
        "explained_variance": None if i == 0 else 0.2,
        "length": 17.0 + i,
        "format_rate": 0.95,
    }
    for i in range(15)
]
WITHOUT_CRITIC = [{"step": i, "reward": 0.5, "accuracy": 0.5} for i in range(3)]


def found(*, num_right, by_steps=(1, 2, 3)):
    one = accuracy.share(num_right, 100)
    return accuracy.Accuracy(one, dict.fromkeys(by_steps, one), 0.9, 20.0)


def test_a_curve_has_the_points_that_were_measured():
    curve = history.policy_curve(RECORDS, "explained_variance")
    assert curve.steps.tolist() == list(range(1, 15))
    assert history.policy_curve(WITHOUT_CRITIC, "reward").steps.tolist() == [0, 1, 2]
    assert not len(history.policy_curve(WITHOUT_CRITIC, "kl").steps)


@pytest.mark.deep
def test_pictures_are_pngs_of_a_decent_size(tmp_path):
    arms = {"base": [], "PPO, learned reward": RECORDS, "GRPO, rule": WITHOUT_CRITIC}
    generator = np.random.default_rng(0)
    probs = generator.random(500)
    bins = calibration.reliability(probs, generator.random(500) < probs, num_bins=10)
    policy_plots.reliability(tmp_path / "reliability.png", bins)
    policy_plots.policy_curves(tmp_path / "curves.png", arms)
    policy_plots.hacking(tmp_path / "hacking.png", RECORDS, WITHOUT_CRITIC)
    policy_plots.accuracy_by_steps(
        tmp_path / "steps.png",
        {"base": found(num_right=0), "GRPO, rule": found(num_right=100, by_steps=(2, 4))},
    )
    rows = [
        StageRow("base", accuracy.share(32, 100), accuracy.share(28, 100)),
        StageRow("PPO, rule", accuracy.share(99, 100), None),
    ]
    policy_plots.accuracy_by_stage(tmp_path / "stages.png", rows)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG")
        assert 5_000 < file.stat().st_size < 200_000


def test_one_iteration_of_one_metric_can_be_drawn(tmp_path):
    policy_plots.policy_curves(tmp_path / "one.png", {"a": [{"step": 1, "reward": 0.5}]})
    policy_plots.accuracy_by_stage(
        tmp_path / "none.png", [StageRow("base", accuracy.share(0, 1), None)]
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_curves_of_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none of the arms"):
        policy_plots.policy_curves(tmp_path / "curves.png", {"base": []})
