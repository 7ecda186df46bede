"""A small decoder learns to do what a description says, and guesses without one."""

import pytest

from deepseek_jax.data import tokenizers
from deepseek_jax.data.steering.description_file import UserDescription
from deepseek_jax.nn.steered import SteeredDecoder
from deepseek_jax.steering import batches, measure, stage
from deepseek_jax.steering.answers import Answerer
from tests.steering import tiny

pytestmark = pytest.mark.deep

NUM_STEPS = 300
SPEC = tiny.spec(
    **{
        "tasks.names": "reverse,double,brackets",
        "tasks.inputs_per_description": 4,
        "model.model_dim": 32,
        "model.expert_hidden_dim": 16,
        "vector.dim": 16,
        "vector.encoder_dim": 16,
        "optimizer.warmup_steps": 20,
        "train.num_steps": NUM_STEPS,
    }
)


@pytest.fixture(scope="module")
def trained():
    tokenizer = tokenizers.bytes_tokenizer()
    data = batches.make_data(SPEC, tokenizer)
    built = stage.build(SPEC, data)
    now = built.initial()
    for number in range(NUM_STEPS):
        now, _ = built.advance(now, number)
    variables = {"params": now.params, "balance": now.balance}
    model = SteeredDecoder(SPEC.model, task_spec=SPEC.vector)
    answerer = Answerer(model, variables, tokenizer, SPEC.tasks.answer_width)
    examiner = measure.Examiner(answerer, data, num_inputs=20, width=SPEC.vector.description_length)
    user = [
        UserDescription("mirror these digits", "reverse", "a:1"),
        UserDescription("bracket the numbers", None, "a:2"),
    ]
    length = SPEC.tasks.sequence_length(SPEC.model.block_size)
    return examiner.findings(length=length, user=user), built.measure(now)


def test_it_does_what_is_described_and_guesses_without(trained):
    found, logged = trained
    assert found.trained.all.value > 0.75 and found.heldout.all.value > 0.7
    assert found.chance.best == pytest.approx(1 / 3)  # the three answers always differ
    assert found.missing.all.value < found.chance.best + 0.1
    assert found.wrong.described.value > 0.75 and found.wrong.asked.value < 0.1
    assert logged["heldout_accuracy"] == pytest.approx(found.trained.all.value, abs=0.1)
    assert logged["paraphrase_accuracy"] == pytest.approx(found.heldout.all.value, abs=0.1)


def test_descriptions_of_a_user_are_told_apart(trained):
    reverse, brackets = trained[0].followed
    assert (reverse.most, brackets.most) == ("reverse", "brackets")
    assert reverse.right == reverse.share and reverse.share.value > 0.6 < brackets.share.value
    assert brackets.right is None


def test_only_compositions_of_its_tasks_are_measured(trained):
    assert set(trained[0].compositions) == {"reverse+double"}
