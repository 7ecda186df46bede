"""Metrics to curves to pictures of a decent size."""

import math

import numpy as np
import pytest

from deepseek_jax.evaluation import history, plots
from deepseek_jax.evaluation.expert_usage import KindInformation

TRAIN_LINES = [
    {
        "step": step,
        "loss": 4.0 * math.log(2.0) / step,
        "load_max_over_mean": 1.5,
        "router_entropy": 1.0,
        "dropped_share": 0.0,
        "unused_experts": 0,
    }
    for step in (1, 2, 4)
]
RECORDS = [*TRAIN_LINES, {"step": 4, "heldout_loss": 2.0, "heldout_bits_per_byte": 1.25}]


def test_curves_are_in_bits_per_byte():
    found = history.from_records(RECORDS, train_bytes_per_target=2.0)
    # 4 bits a target of 2 bytes: 2 bits a byte.
    assert found.train.steps.tolist() == [1, 2, 4]
    np.testing.assert_allclose(found.train.values, [2.0, 1.0, 0.5])
    assert [array.tolist() for array in found.heldout] == [[4], [1.25]]
    assert found.router is not None
    assert found.router.load_max_over_mean.values.tolist() == [1.5] * 3


def test_a_dense_model_has_no_router_curves():
    lines = [{"step": 1, "loss": 1.0}]
    found = history.from_records(lines, train_bytes_per_target=2.0)
    assert found.router is None and len(found.heldout.steps) == 0


def test_metrics_without_a_loss_are_refused():
    with pytest.raises(ValueError, match="none of 1 lines"):
        history.from_records(RECORDS[-1:], train_bytes_per_target=2.0)


def test_labels_never_overlap():
    placed = plots._spread([1.0, 1.01, 1.02, 3.0], gap=0.1)
    np.testing.assert_allclose(placed, [1.0, 1.1, 1.2, 3.0])


def flat_information(num_layers, *, bits):
    values = np.full(num_layers, bits)
    return KindInformation(values, values, values, values, 1.0)


@pytest.mark.deep
def test_pictures_are_pngs_of_a_decent_size(tmp_path):
    found = history.from_records(RECORDS, train_bytes_per_target=2.0)
    load = np.random.default_rng(0).integers(0, 9, size=(12, 128))
    information = flat_information(12, bits=0.5)
    plots.loss_curve(tmp_path / "loss.png", found, baselines={"gzip -9": 2.1, "xz -9": 2.1})
    plots.expert_load(tmp_path / "load.png", {"code": load, "prose": load})
    plots.kind_information(tmp_path / "information.png", information)
    assert found.router is not None
    plots.router_health(tmp_path / "router.png", found.router, num_experts=4)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG")
        assert 5_000 < file.stat().st_size < 200_000


def test_a_run_that_has_hardly_begun_can_be_drawn(tmp_path):
    found = history.from_records(TRAIN_LINES[:1], train_bytes_per_target=2.0)
    plots.loss_curve(tmp_path / "loss.png", found, baselines={"gzip -9": 2.1})
    plots.expert_load(tmp_path / "load.png", {"text": np.zeros((1, 2), np.int64)})
    nothing = flat_information(1, bits=0.0)
    plots.kind_information(tmp_path / "information.png", nothing)
    assert found.router is not None
    plots.router_health(tmp_path / "router.png", found.router, num_experts=2)
    assert len(list(tmp_path.iterdir())) == 4
