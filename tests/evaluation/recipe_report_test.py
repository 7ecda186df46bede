"""What the recipe's page says when all arms ran, when few did, and when nothing was gained."""

import dataclasses
import json

import pytest

from deepseek_jax.evaluation import accuracy, calibration, recipe_findings, recipe_report
from deepseek_jax.evaluation import recipe_words as words
from deepseek_jax.evaluation.accuracy import Accuracy
from deepseek_jax.evaluation.recipe_findings import (
    ARMS,
    Arm,
    ArticleRow,
    PairKind,
    PolicySample,
    RecipeFindings,
    StoredArm,
)


def answers(num_right, *, many_steps=50):
    """Accuracy on 100 problems, half of them of 3 steps."""
    by_steps = {2: accuracy.share(num_right // 2, 50), 3: accuracy.share(many_steps, 50)}
    return Accuracy(accuracy.share(num_right, 100), by_steps, 0.95, 17.25)


def arm(num_right, *, records=(), greedy=90, many_steps=50, **settings):
    return Arm(
        sampled=answers(num_right, many_steps=many_steps),
        greedy=None if greedy is None else answers(greedy),
        settings=settings,
        records=tuple(records),
        samples=(PolicySample("1+2=", "`````\n<answer>3</answer>", True),),
    )


def records(*rows):
    return [
        {"iteration": i, "reward": reward, "accuracy": right, "kl": 0.5 * i}
        for i, (reward, right) in enumerate(rows)
    ]


HELD = records((0.3, 0.3), (0.8, 0.9), (0.85, 0.95))
FREED = records((0.3, 0.3), (0.6, 0.88), (0.877, 0.02))
ALL_ARMS = {
    "ppo_no_kl": arm(2, records=FREED, kl_weight=0.0, learning_rate=1e-3),
    "grpo": arm(93, records=records((0.2, 0.2), (0.9, 0.9))),
    "ppo_rule": arm(98, greedy=None),
    "ppo_learned": arm(95, records=HELD, many_steps=20, kl_weight=0.1, learning_rate=1e-3),
    "supervised": arm(99),
    "base": arm(33, greedy=28, many_steps=10),
}


def row(model, *, latency_ms=None, right=None, active=None):
    share = None if right is None else accuracy.share(right, 100)
    return ArticleRow(
        model=model,
        latency_ms=latency_ms,
        accuracy=share,
        active_parameters=active,
        total_parameters=1000,
    )


def made(**changes):
    found = RecipeFindings(
        run=recipe_findings.RecipeRun(
            name="zero",
            command="python -m experiments.main --config=a|b",
            versions={"jax": "0.1"},
            machine="cpu x 1, 2 cores",
            settings={"seed": 0},
            stage_seconds={"base": 177.25, "reward model": 53.0},
            parameters={"total": 600577, "active": 400000},
        ),
        problems=recipe_findings.Problems(
            name="3-digit addition",
            steps_are="columns of the sum",
            procedure_share=0.22,
            base_accuracy=0.32,
        ),
        arms=ALL_ARMS,
        reward_model=recipe_findings.RewardModel(
            pairs=accuracy.share(497, 500),
            pairs_are="the base's own responses",
            num_train_pairs=1650,
            calibration_error=0.0123,
            num_bins=10,
            bins=(calibration.Bin(0.9, accuracy.share(45, 50)),),
            kinds=(
                PairKind("forgets | the carry", accuracy.share(500, 500), 0.127),
                PairKind("one digit of the answer changed", accuracy.share(271, 500), 0.877),
            ),
            kinds_are="Kinds are named by what is wrong.",
        ),
        article=recipe_findings.ArticleTable(
            r1=row("sparse base, trained on text", latency_ms=0.516, right=33, active=250),
            r1_zero=row("after PPO", latency_ms=0.52, right=95, active=250),
            dense=row("dense baseline", active=1000),
            latency_is="Median of 5.",
            accuracy_is="Of the held-out problems at temperature 1.",
        ),
        stored=recipe_findings.Stored(
            source="docs/recipe.md",
            arms={"base": StoredArm((0.338, 0.353, 0.310), (0.282,))},
        ),
    )
    return dataclasses.replace(found, **changes)


def only(*names):
    return {name: ALL_ARMS[name] for name in names}


def test_the_headline_says_what_came_out_and_what_it_is_not():
    assert words.headline(made()) == (
        "Accuracy on 100 held-out problems of 3-digit addition at temperature 1: base 33.0% -> "
        "PPO, learned reward 95.0%; PPO, rule 98.0%; GRPO, rule 93.0%. Reinforcement selects and "
        "sharpens a procedure that 22.0% of the text holds; it does not discover it. A base of "
        "about 32% is a matter of construction: the styles of its text were chosen for it."
    )


def test_no_gain_is_not_called_one():
    line = words.headline(made(arms={**only("base"), "grpo": arm(40), "ppo_rule": arm(3)}))
    assert '"PPO, rule" is clearly below the base.' in line
    assert '"GRPO, rule" is not clearly apart from the base.' in line
    assert "sharpens" not in line
    assert "No policy was reinforced" in words.headline(made(arms=only("base", "supervised")))


def test_the_page_holds_what_a_reader_looks_for():
    page = recipe_report.to_markdown(made())
    for text in (
        "| base | 33.0% [24.6, 42.7] | 28.0% [20.1, 37.5] | 95.0% | 17.2 | "
        "33.4 +- 2.2% (3 seeds) | 28.2% (1 seed) |",
        "| PPO, rule | 98.0% [93.0, 99.4] | not measured | 95.0% | 17.2 | not measured |",
        "docs/recipe.md",
        "| steps | problems | base | supervised | PPO, learned reward |",
        '"PPO, learned reward" (40.0%) is clearly behind it',
        "| R1 | sparse base, trained on text | 0.516 (45) | 33.0% [24.6, 42.7] (82%) | 25.0% (98%)",
        "| GPT-4 | dense baseline | not measured (120) | not measured (65%) | 100.0% (20%) |",
        "R1-Zero is clearly the more accurate",
        "it ranks 99.4% [98.3, 99.8] rightly",
        "forgets \\| the carry",
        "| 0.877 | **blind** |",
        "Kinds are named by what is wrong. Mean score: of the wrong response",
        '**It is blind to "one digit of the answer changed" (54.2%',
        "**Without KL the policy hacked the reward model**",
        "The two runs differ in: kl_weight (0.1, 0.0).",
        "0.300 at first, 0.880 at most (iteration 1), 0.020 at last",
        "**right** (the first 4 characters ask):\n\n"
        "``````text\n1+2=`````\n<answer>3</answer>\n``````",
        "--config=a\\|b",
        "| kl_weight | - | - | 0.1 | - | - | 0.0 |",
        "| base | 177.2 |",
        "| all | 230.2 |",
    ):
        assert text in page, text
    for name in ARMS.values():
        assert f"| {name} |" in page and f"### {name}\n" in page
    assert page.isascii()


def test_what_was_not_run_is_left_out():
    found = made(arms=only("base", "ppo_rule"), reward_model=None, article=None, stored=None)
    page = recipe_report.to_markdown(found)
    for text in ("GRPO", "supervised", "learned", "reward model |", "earlier", "The article", "KL"):
        assert text not in page.split("## What was run")[0], text
    assert "policy_curves.png" not in page
    assert "was_hacked" not in recipe_report.to_json(found)


def test_blind_is_what_chance_explains_or_what_is_seldom_seen():
    def is_blind(num_right, num):
        return PairKind("x", accuracy.share(num_right, num), None).is_blind

    assert is_blind(13, 20)  # 65%, from 43%
    assert is_blind(590, 1000)  # 59%, from 56%
    assert is_blind(0, 1000)
    assert not is_blind(650, 1000)
    sees = dataclasses.replace(made().reward_model, kinds=made().reward_model.kinds[:1])
    assert words.blindness(sees).startswith("It is blind to none")
    blind = PairKind("x", accuracy.share(0, 9), None)
    many = dataclasses.replace(sees, kinds=(blind,) * 4)
    assert "blind to 4 of the kinds below" in words.blindness(many)
    unknown = dataclasses.replace(sees, kinds=())
    assert "not known" in words.blindness(unknown)


@pytest.mark.parametrize(
    "freed",
    [
        arm(94, records=FREED),  # as right as with KL
        arm(2, records=records((0.9, 0.9), (0.3, 0.02))),  # the reward fell, too
        arm(2),  # nothing known of the reward
    ],
)
def test_no_hacking_is_claimed_without_rising_reward_and_falling_truth(freed):
    found = made(arms={**ALL_ARMS, "ppo_no_kl": freed})
    assert not found.was_hacked
    assert "no hacking shows" in recipe_report.to_markdown(found)
    assert made().was_hacked


@pytest.mark.deep
def test_files_hold_the_same_numbers_and_every_picture_named(tmp_path):
    recipe_report.write(made(), tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert page == recipe_report.to_markdown(made())
    saved = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved == recipe_report.to_json(made())
    assert saved["was_hacked"] is True and saved["verdict"] == words.headline(made())
    assert saved["article"]["r1"]["utilization"] == 0.25
    assert saved["article"]["dense"]["latency_ms"] is None
    assert [kind["is_blind"] for kind in saved["reward_model"]["kinds"]] == [False, True]
    base = saved["arms"]["base"]["sampled"]
    assert accuracy.from_json(base) == ALL_ARMS["base"].sampled
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {line.split("](")[1][:-1] for line in page.split("\n") if line[:2] == "!["}
    assert len(pictures) == 5


def test_a_short_run_writes_only_what_it_has(tmp_path):
    recipe_report.write(made(arms=only("base"), reward_model=None), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "report.md",
        "report.json",
        "accuracy_by_stage.png",
        "accuracy_by_steps.png",
    }


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kl is nan"):
        arm(3, records=[{"iteration": 0, "kl": float("nan")}])
    bad = dataclasses.replace(made().run, stage_seconds={"base": float("inf")})
    with pytest.raises(ValueError, match="inf"):
        recipe_report.write(made(run=bad), tmp_path)
    assert not list(tmp_path.iterdir())


def test_arms_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="must be of"):
        made(arms={**ALL_ARMS, "dpo": arm(3)})
    with pytest.raises(ValueError, match="must be of"):
        made(arms=only("grpo"))
    fewer = accuracy.summarize([True], [2], [True], [9])
    other = dataclasses.replace(arm(3), sampled=fewer)
    with pytest.raises(ValueError, match="grpo was asked"):
        made(arms={**only("base"), "grpo": other})


def test_a_run_without_kl_that_ends_more_right_is_not_hacked():
    arms = {**ALL_ARMS, "ppo_learned": arm(40), "ppo_no_kl": arm(95, records=FREED)}
    assert not made(arms=arms).was_hacked
