"""What the report says for a model that passes, one that fails, and the cases between."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.evaluation import findings, report, report_words
from deepseek_jax.evaluation.baselines import Baselines
from deepseek_jax.evaluation.bits import DocumentBits
from deepseek_jax.evaluation.bootstrap import Estimate
from deepseek_jax.evaluation.expert_usage import KindInformation
from deepseek_jax.evaluation.findings import Experts, Findings, LayerHealth, Sample, Score
from deepseek_jax.evaluation.heldout import HeldoutLoss
from deepseek_jax.ops import balance
from tests import tolerances

INFORMATION = KindInformation(
    bits=np.array([0.25, 0.001]),
    shuffled_mean=np.array([0.002, 0.002]),
    shuffled_quantile=np.array([0.004, 0.004]),
    p_values=np.array([1 / 1001, 0.4]),
    kind_entropy=0.9,
)


def score(name, lead, *, low=None, high=None, must_be_beaten=True):
    return Score(
        name=name,
        bits_per_byte=Estimate(2.0, 1.9, 2.1),
        lead=Estimate(lead, low, high),
        must_be_beaten=must_be_beaten,
    )


WINS = (
    score("token bigram", 0.3, low=0.2, high=0.4),
    score("gzip -9", 0.5, low=0.4, high=0.6),
    score("xz -9", -0.1, low=-0.2, high=-0.05, must_be_beaten=False),
)


def made(**changes):
    experts = Experts(
        num_experts=4,
        layers=(LayerHealth(1.5, 1.2, 0.0, ()), LayerHealth(2.0, 1.1, 0.0, ())),
        load_by_kind={"code": np.ones((2, 4), np.int64), "prose": np.ones((2, 4), np.int64)},
        information=INFORMATION,
    )
    found = Findings(
        run=findings.Run(
            name="tiny",
            command="python -m experiments.main --config=a|b",
            versions={"jax": "0.1"},
            device="cpu x 1",
            num_steps=10,
            num_tokens=3000,
            train_seconds=150.0,
            evaluation_seconds=5.0,
        ),
        corpus=findings.Corpus(
            source="stdlib",
            sha256="0f" * 32,
            num_train_documents=30,
            num_train_bytes=6000,
            num_train_targets=2000,
            num_heldout_documents=7,
            vocab_size=300,
        ),
        parameters={"total": 12345, "active": 2345},
        heldout=HeldoutLoss(
            nats=700.0,
            num_targets=200,
            num_bytes=600,
            bits_per_byte=Estimate(1.683, 1.6, 1.8),
            by_kind={"code": Estimate(1.5, 1.4, 1.6), "prose": Estimate(1.9, 1.8, 2.0)},
        ),
        scores=WINS,
        experts=experts,
        samples=(Sample("def f", "(x):\n```\n"),),
        plots=(findings.Plot("loss.png", "Loss."),),
    )
    return dataclasses.replace(found, **changes)


def test_a_pass_is_said_with_its_numbers():
    assert made().passes
    assert report_words.headline(WINS) == (
        "PASS: the model needs fewer bits per byte of held-out text than token bigram by 0.300 "
        "and gzip -9 by 0.500."
    )


def test_a_fail_names_what_was_lost_to_even_when_it_is_within_the_interval():
    scores = (WINS[0], score("gzip -9", -0.02, low=-0.1, high=0.1))
    found = made(scores=scores)
    assert not found.passes
    assert report_words.headline(scores) == (
        "FAIL: the model needs more bits per byte of held-out text than gzip -9 by 0.020."
    )
    assert "NOT beaten (must be), but within the interval" in report.to_markdown(found)
    assert report.to_json(found)["passes"] is False


def test_equality_is_no_win():
    assert not score("gzip -9", 0.0, low=-0.1, high=0.1).is_beaten


def test_a_narrow_pass_says_that_it_is_narrow():
    scores = (score("token bigram", 0.01, low=-0.02, high=0.04), WINS[1])
    line = report_words.headline(scores)
    assert line.startswith("PASS")
    assert "The lead over token bigram is within what other documents could change." in line


def test_what_need_not_be_beaten_does_not_decide():
    assert made().passes
    assert "| NOT beaten |" in report.to_markdown(made())


def test_leads_are_the_baseline_less_the_model():
    ones = np.ones(4, np.int64)
    model = DocumentBits(np.full(4, 2.0), ones)
    others = [DocumentBits(np.full(4, bits), ones) for bits in (3.0, 4.0, 1.0, 2.5)]
    scores = findings.score_baselines(model, Baselines(*others), seed=0)
    leads = {s.name: (s.bits_per_byte.value, s.lead.value, s.must_be_beaten) for s in scores}
    assert leads == {
        "token bigram": (3.0, 1.0, True),
        "byte bigram": (4.0, 2.0, False),
        "gzip -9": (1.0, -1.0, True),
        "xz -9": (2.5, 0.5, False),
    }


def test_the_page_holds_what_a_reader_looks_for():
    page = report.to_markdown(made())
    for text in (
        "1.683 [1.600, 1.800]",
        "+0.300 [+0.200, +0.400]",
        "code 1.500",
        "7 documents",
        "3.500 nats a token",
        "Every expert of every layer was chosen",
        "In 1 of 2 layers the choice of experts tells code and prose apart",
        "| 0 | 1.50 | 1.20 | 0 | 0.00% | 0.25 |",
        "<= 0.001",
        "![Loss.](loss.png)",
        "````text\ndef f(x):\n```\n\n````",
        "(1.50 epochs), 150 s (2.5 minutes)",
        "total 12,345, active 2,345",
        "0f" * 32,
        "--config=a\\|b",
    ):
        assert text in page
    assert page.isascii()


def test_unused_experts_and_drops_are_named():
    layers = (LayerHealth(1.5, 1.2, 0.0, ()), LayerHealth(2.0, 1.1, 0.02, (1, 3)))
    experts = dataclasses.replace(made().experts, layers=layers)
    assert report_words.usage(experts) == (
        "2 of 8 experts were never chosen (layer 1: 1, 3). "
        "Up to 2.00% of a layer's assignments were dropped."
    )


def test_no_layer_that_knows_the_kinds_is_said_plainly():
    none = INFORMATION._replace(p_values=np.array([0.3, 0.06]))
    experts = dataclasses.replace(made().experts, information=none)
    assert report_words.information(experts).startswith("No layer's choice of experts tells")


def test_one_kind_and_a_dense_model_have_their_words():
    experts = dataclasses.replace(
        made().experts, information=None, load_by_kind={"text": np.ones((2, 4), np.int64)}
    )
    page = report.to_markdown(made(experts=experts))
    assert "All held-out text is of one kind (text)" in page
    assert "The model is dense" in report.to_markdown(made(experts=None))


def test_one_document_has_no_interval_in_words_and_a_null_in_json():
    single = dataclasses.replace(WINS[0], bits_per_byte=Estimate(2.0, None, None))
    found = made(scores=(single, *WINS[1:]))
    assert "2.000 (one document: no interval)" in report.to_markdown(found)
    assert report.to_json(found)["scores"][0]["bits_per_byte"]["low"] is None


def test_files_hold_the_same_numbers(tmp_path):
    report.write(made(), tmp_path)
    assert (tmp_path / "report.md").read_text() == report.to_markdown(made())
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == report.to_json(made())
    assert saved["verdict"] == report_words.headline(WINS)
    assert saved["heldout"]["nats_per_target"] == 3.5
    assert saved["experts"]["load_by_kind"]["code"] == [[1, 1, 1, 1]] * 2
    assert saved["scores"][2]["is_beaten"] is False and saved["scores"][2]["is_clear"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_a_number_that_is_not_finite_is_refused(tmp_path):
    bad = dataclasses.replace(made().run, train_seconds=float("nan"))
    with pytest.raises(ValueError, match="nan"):
        report.write(made(run=bad), tmp_path)
    assert not list(tmp_path.iterdir())


def test_health_of_layers_by_hand():
    stats = balance.RouterStats(
        load=jnp.array([[2, 2, 2, 2], [6, 0, 2, 0]], jnp.float32),
        dropped=jnp.array([0, 2], jnp.float32),
        entropy_sum=jnp.array([4.0, 2.0], jnp.float32),
        num_tokens=jnp.array([4.0, 4.0], jnp.float32),
        visits=jnp.array([4.0, 4.0], jnp.float32),
        overflowed=jnp.array([0.0, 0.0], jnp.float32),
    )
    first, second = findings.layers_health(stats)
    assert first == (1.0, 1.0, 0.0, ())
    assert second.unused == (1, 3)
    np.testing.assert_allclose(second[:3], [3.0, 0.5, 0.25], **tolerances.OP_F32)
