"""Accuracy beside rules of length, by hand, and what is said of it."""

import json

import numpy as np
import pytest

from deepseek_jax.evaluation import preference_report
from deepseek_jax.evaluation.preference_report import Compared, Side

PAIRS = {
    "file": "pairs.jsonl",
    "num_lines": 9,
    "num_train": 4,
    "num_heldout": 4,
    "left_out": {"equal": [3]},
}
BOTH = {"openings": 0, "texts": 0}


def compared(gaps, chosen_sizes, rejected_sizes, groups):
    count = len(gaps)
    sizes = [np.array(sizes) for sizes in (chosen_sizes, rejected_sizes)]
    return Compared(
        Side(np.array(gaps, np.float32), sizes[0], sizes[0] // 2),
        Side(np.zeros(count, np.float32), sizes[1], sizes[1] // 2),
        np.array(groups),
    )


def measured(heldout, train=None, base_gaps=None):
    train = heldout if train is None else train
    return preference_report.measure(
        train, heldout, base_gaps, name="run", step=7, pairs=PAIRS, on_both_sides=BOTH
    )


def test_every_figure_by_hand():
    # Gaps: right, right, tie, wrong. Characters: longer, shorter, longer, tie.
    heldout = compared([1.0, 2.0, 0.0, -1.0], [9, 4, 7, 6], [4, 9, 6, 6], [5, 5, 8, 9])
    found = measured(heldout, compared([1.0, 1.0], [1, 1], [1, 1], [0, 1]))
    assert (found.accuracy.value, found.num_ties) == (0.5, 1)
    assert (found.num_heldout, found.num_heldout_openings) == (4, 3)
    assert found.train_accuracy == (1.0, 1.0, 1.0)
    rules = {rule.name: rule for rule in found.rules}
    values = {name: (rule.accuracy.value, rule.num_ties) for name, rule in rules.items()}
    assert values == {
        "the longer wins (characters)": (0.5, 1),
        "the shorter wins (characters)": (0.25, 1),
        "the longer wins (tokens)": (0.25, 2),  # 4 against 2, 2 against 4, 3 against 3 twice
        "the shorter wins (tokens)": (0.25, 2),
    }
    assert rules["the shorter wins (characters)"].lead.value == 0.25
    assert found.prefers_longer.value == 0.25  # the first pair alone
    assert found.pairs["left_out"] == {"equal": 1}


def test_the_model_before_training_is_a_row_or_said_to_be_missing():
    heldout = compared([1.0, 2.0, 0.0, -1.0], [9, 4, 7, 6], [4, 9, 6, 6], [5, 5, 8, 9])
    base = measured(heldout, base_gaps=np.array([0.5, -0.5, 0.5, 0.5])).base
    assert (base.accuracy.value, base.num_ties, base.lead.value) == (0.75, 0, -0.25)
    page = preference_report.to_markdown(measured(heldout))
    assert "by mean log-probability | not measured: its run is not there" in page


def test_pairs_weigh_alike_and_intervals_draw_groups():
    is_right = np.array([True, True, True, False])
    alike = preference_report.share(is_right, np.array([3, 3, 3, 1]))
    assert alike.value == 0.75 and (alike.low, alike.high) == (0.0, 1.0)  # AA, AB, BB
    assert preference_report.share(is_right, np.array([1, 1, 1, 1])) == (0.75, None, None)
    many = np.arange(400) % 4 != 0
    alone = preference_report.share(many, np.arange(400))
    by_four = preference_report.share(np.repeat(many, 4), np.repeat(np.arange(400), 4))
    assert alone.low is not None and by_four.low is not None
    # Four copies of a pair tell no more than one.
    assert by_four.low == pytest.approx(alone.low) and by_four.value == alone.value


def many(num_right, num, *, longer):
    """Pairs of dialogues of their own; of the first `longer`, the chosen side is longer."""
    gaps = np.where(np.arange(num) < num_right, 1.0, -1.0)
    sizes = np.where(np.arange(num) < longer, 20, 4)
    return compared(gaps, sizes, np.full(num, 10), np.arange(num))


@pytest.mark.parametrize(
    ("num_right", "longer", "chance", "rule"),
    [
        (300, 300, "above chance", "not told from none"),
        (300, 200, "above chance", "a clear one"),
        (210, 300, "not told from chance", "so that it is behind"),
        (100, 200, "below chance", "so that it is behind"),
    ],
)
@pytest.mark.deep
def test_the_line_says_what_the_intervals_do(num_right, longer, chance, rule):
    line = preference_report.headline(measured(many(num_right, 400, longer=longer)))
    assert chance in line and rule in line


@pytest.mark.deep
def test_the_page_has_all_of_it():
    found = measured(many(300, 400, longer=200))
    page = preference_report.to_markdown(found)
    assert "| the reward model | 75.0% [" in page
    assert "| the longer wins (characters) | 50.0% [" in page and "| +25.0 points [" in page
    assert "left out: 1 equal" in page and "0 openings and 0 whole dialogues" in page
    content = json.loads(json.dumps(preference_report.to_json(found), allow_nan=False))
    assert content["verdict"] == preference_report.headline(found)
    assert content["accuracy"]["value"] == 0.75 and len(content["rules"]) == 4
