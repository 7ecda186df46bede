"""Lines that survive kills, the sums behind them, and what a person is shown."""

import contextlib
import json
import logging
import os
import signal

import jax
import numpy as np
import pytest
from rich import console as rich_console

from deepseek_jax.ops.balance import RouterStats
from deepseek_jax.training import interrupt, metrics, progress, step, sums


def _write(path, records, *, last_step=0):
    with contextlib.closing(metrics.JsonLines(path, last_step=last_step)) as lines:
        for record in records:
            lines.write(record)


def test_lines_after_the_restored_step_are_dropped(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    _write(path, [{"step": 10, "loss": 0.1}, {"step": 20, "loss": 0.2}, {"step": 30, "loss": 0.3}])
    with path.open("a") as file:
        file.write('{"step": 40, "lo')
    caplog.set_level(logging.WARNING)
    _write(path, [{"step": 30, "loss": 0.25}], last_step=20)
    assert [record["loss"] for record in metrics.read_lines(path)] == [0.1, 0.2, 0.25]
    assert "torn" in caplog.text and "1 lines of steps after 20" in caplog.text


def test_a_torn_line_is_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')  # whole JSON, but its newline is missing
    assert metrics.read_lines(path) == [{"step": 1}]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}'])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: "):
        metrics.JsonLines(path, last_step=5)


def test_a_non_finite_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        _write(tmp_path / "metrics.jsonl", [{"step": 1, "loss": float("nan")}])


def test_tensorboard_gets_the_numbers(tmp_path):
    writer = metrics.RunLines(tmp_path, last_step=0)
    writer.write({"step": 3, "loss": 1.5, "share_of_peak": None})
    writer.sync()
    writer.close()
    assert metrics.read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 3, "loss": 1.5, "share_of_peak": None}
    ]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes() and b"share_of_peak" not in events.read_bytes()


def _metrics(loss, targets, load):
    load = np.asarray(load, np.float32)
    layers = len(load)
    return step.StepMetrics(
        loss=np.float32(loss),
        aux_loss=np.float32(0.5),
        gradient_norm=np.float32(2.0),
        num_targets=np.float32(targets),
        stats=RouterStats(
            load=load,
            dropped=np.full(layers, 1.0, np.float32),
            entropy_sum=np.arange(1, layers + 1, dtype=np.float32) * targets,
            num_tokens=np.full(layers, targets, np.float32),
            visits=np.full(layers, 2.0 * targets, np.float32),
            overflowed=np.full(layers, 0.5 * targets, np.float32),
        ),
        gradient_is_finite=np.array([True]),
    )


def test_line_by_hand():
    total = sums.add(sums.RunningSums(), _metrics(2.0, 10, [[5, 5, 0, 0], [10, 0, 0, 0]]))
    total = sums.add(total, _metrics(4.0, 30, [[0, 10, 10, 10], [10, 20, 0, 0]]))
    assert sums.load(total) == [[5, 15, 10, 10], [20, 20, 0, 0]]
    line = sums.line(total)
    assert line["loss"] == (2.0 * 10 + 4.0 * 30) / 40  # by target, not (2 + 4) / 2
    assert line["tokens"] == 40
    assert line["load_max_over_mean"] == 2.0  # second layer: 20 over a mean of 10; first 1.5
    assert line["unused_experts"] == 2
    assert line["router_entropy"] == 1.0  # the first layer, the lower of 1 and 2
    assert line["dropped_share"] == pytest.approx(4 / 80)
    assert line["devices_per_token"] == 2.0
    assert line["overflow_share"] == 0.25
    assert (line["aux_loss"], line["gradient_norm"]) == (0.5, 2.0)
    after = sums.emptied(total)
    assert after.tokens == 40 and sums.load(after) is None
    assert "unused_experts" not in sums.line(
        sums.add(after, _metrics(1, 1, [[1]])._replace(stats=None))
    )


def test_sums_survive_json_bit_for_bit():
    total = sums.add(sums.RunningSums(), _metrics(0.1, 7, [[1, 2], [3, 4]]))
    back = sums.from_json(json.loads(json.dumps(sums.to_json(total))))
    more = _metrics(0.3, 3, [[1, 0], [0, 1]])
    assert sums.line(sums.add(back, more)) == sums.line(sums.add(total, more))
    jax.tree.map(np.testing.assert_array_equal, back, total)
    empty = sums.from_json(sums.to_json(sums.RunningSums()))
    assert empty == sums.RunningSums()


def test_bits_per_byte():
    assert sums.bits_per_byte(nats=np.log(2.0) * 12, num_bytes=4) == pytest.approx(3.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_remembered_the_second_acts(number, capfd):
    received = []
    before = signal.signal(number, lambda *_: received.append("outer"))
    try:
        with interrupt.Interrupt() as asked:
            assert asked.requested is None
            os.kill(os.getpid(), number)
            assert asked.requested is number and received == []
            os.kill(os.getpid(), number)
            assert received == ["outer"]
        os.kill(os.getpid(), number)
        assert received == ["outer", "outer"]
    finally:
        signal.signal(number, before)
    assert f"{number.name}: finishing the step" in capfd.readouterr().err
    assert interrupt.exit_code(number) == {signal.SIGTERM: 0, signal.SIGINT: 130}[number]
    assert interrupt.exit_code(None) == 0


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert progress.peak_flops(kind) == peak


def test_without_a_terminal_a_line_is_text():
    console = rich_console.Console(record=True, force_terminal=False, width=40, quiet=False)
    with progress.Progress(first_step=0, num_steps=9, console=console) as shown:
        shown.step(3)
        shown.log({"step": 3, "loss": 1.25, "tokens_per_second": None, "share_of_peak": None})
        shown.log({"step": 3, "heldout_bits_per_byte": 2.5})
    assert console.export_text().splitlines() == [
        "step 3/9  loss 1.2500  tokens/s unknown yet  share of peak unknown",
        "step 3/9  heldout bits per byte 2.5000",
    ]
