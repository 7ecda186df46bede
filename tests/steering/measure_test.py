"""What is measured of answers that are known: shares, and what their intervals draw."""

import types

import numpy as np
import pytest

from deepseek_jax.data import tokenizers
from deepseek_jax.evaluation import bootstrap
from deepseek_jax.steering import answers, batches, measure, report
from tests.steering import tiny

NUM_INPUTS = 20
DENSE = {
    "model.num_experts": 1,
    "model.expert_kernel": "loop",
    "model.num_groups": 1,
    "model.top_groups": 1,
    "model.top_k": 1,
    "model.router_weights": "raw",
    "model.balance": "none",
    "model.load_balance_weight": 0.0,
    "model.router_z_weight": 0.0,
    "vector.shifts_router": False,
}


@pytest.fixture(scope="module")
def found():
    """Answers of one who does what every other sentence says, and sums without one."""
    spec = tiny.spec(**DENSE)
    tokenizer = tokenizers.bytes_tokenizer()
    data = batches.make_data(spec, tokenizer)
    summed, doing = data.tasks[0], {}
    for described in (data.train_descriptions, data.heldout_descriptions):
        for number, (row, task) in enumerate(zip(*described, strict=True)):
            doing[tuple(row)] = data.tasks[task].answer if number % 2 == 0 else lambda _: None

    def greedy(_, prompts, description):
        texts = [tokenizer.decode(row[1:-1]) for row in prompts]
        does = [doing.get(tuple(row), summed.answer) for row in description]
        return [do(text) for do, text in zip(does, texts, strict=True)]

    answerer = types.SimpleNamespace(
        tokenizer=tokenizer, model=types.SimpleNamespace(spec=spec.model)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "greedy", greedy)
        examiner = measure.Examiner(
            answerer, data, num_inputs=NUM_INPUTS, width=spec.vector.description_length
        )
        return examiner.findings(length=8, user=[])


def test_the_intervals_draw_descriptions(found):
    for share in (found.heldout.all, found.wrong.described):
        assert 0.4 < share.value < 0.6 and share.drawn == "descriptions"
    assert found.heldout.all.num == 12 * NUM_INPUTS
    assert 100 < found.heldout.all.num_drawn <= 120  # 10 a task, of which some are not drawn
    assert found.heldout.by_task["sum"].num_drawn <= 10
    # Of 120 sentences half are understood, each asked twice on average: Wilson over the answers
    # would give 0.063 on each side.
    assert found.heldout.all.high - found.heldout.all.low > 2 * 0.075


def test_without_a_description_the_intervals_draw_inputs(found):
    missing = found.missing
    assert (missing.all.drawn, missing.all.num_drawn) == ("inputs", NUM_INPUTS)
    assert missing.by_task["sum"].value == 1.0 > missing.by_task["sum"].low > 0.8
    assert missing.all.value == pytest.approx(
        np.mean([share.value for share in missing.by_task.values()])
    )


def test_the_report_says_what_is_drawn(found):
    text = report.markdown(found, step=1, num_inputs=NUM_INPUTS)
    assert f"{bootstrap.NUM_RESAMPLES:,} resamples of whole descriptions" in text
    content = report.content(found, step=1, num_inputs=NUM_INPUTS)
    assert content["heldout"]["all"]["drawn"] == "descriptions"
    assert content["missing"]["all"]["drawn"] == "inputs"
