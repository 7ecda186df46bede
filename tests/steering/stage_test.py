"""The stage: the same inputs for every task, it learns, resumes and is measured."""

import collections
import dataclasses
import json
import types

import numpy as np
import pytest
from rich import console as rich_console

from deepseek_jax.data import tokenizers
from deepseek_jax.data.steering import encoded
from deepseek_jax.steering import batches, stage, step
from deepseek_jax.training import metrics
from experiments import steering
from tests.steering import tiny

QUIET = rich_console.Console(quiet=True)


def lines(directory):
    listed = metrics.read_lines(directory / "metrics.jsonl")
    return [{name: x for name, x in line.items() if name != "seconds"} for line in listed]


def test_every_task_draws_the_same_inputs_and_answers_alone_are_targets():
    spec = tiny.spec()
    data = batches.make_data(spec, tokenizers.bytes_tokenizer())
    seen = collections.defaultdict(set)
    for number in range(300):
        rows = batches.draw(spec, data, step=number).rows
        task_ids = batches.order.batch_ids(
            step=number, batch_size=24, num_rows=len(data.tasks), seed=spec.seed
        )
        for task, row in zip(np.repeat(task_ids, 2), rows.tokens, strict=True):
            seen[task].add(tuple(row[:4]))
    assert len(seen) == len(data.tasks)
    assert all(len(inputs) == spec.tasks.num_train for inputs in seen.values())
    ids = np.arange(3)
    rows = encoded.rows(data.heldout, ids, ids, length=8)
    text = tokenizers.bytes_tokenizer().decode(rows.targets[0][rows.target_mask[0]])
    assert text == data.tasks[0].answer(data.heldout_inputs[0])
    assert rows.targets[0][rows.target_mask[0]][-1] == tokenizers.bytes_tokenizer().eos_id


def test_a_description_tells_the_task_of_its_rows():
    spec = tiny.spec(**{"tasks.descriptions_per_step": 3})
    tokenizer = tokenizers.bytes_tokenizer()
    data = batches.make_data(spec, tokenizer)
    told = zip(data.train_descriptions.tokens, data.train_descriptions.task_ids, strict=True)
    task_of = {tuple(row): data.tasks[number] for row, number in told}
    for number in range(20):
        drawn = batches.draw(spec, data, step=number)
        for place, description in enumerate(drawn.description):
            if not description.any():
                continue
            for row in (2 * place, 2 * place + 1):
                answer = tokenizer.decode(drawn.rows.targets[row][drawn.rows.target_mask[row]][:-1])
                digits = tokenizer.decode(drawn.rows.tokens[row][1:3])
                assert answer == task_of[tuple(description)].answer(digits)


def test_a_batch_follows_from_seed_and_step_and_some_descriptions_are_missing():
    spec = tiny.spec()
    data = batches.make_data(spec, tokenizers.bytes_tokenizer())
    one, again, other = (batches.draw(spec, data, step=number) for number in (7, 7, 8))
    np.testing.assert_array_equal(one.description, again.description)
    assert (one.description != other.description).any()
    drawn = [batches.draw(spec, data, step=number).description for number in range(100)]
    assert np.mean(~np.concatenate(drawn).any(axis=1)) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vector.encoder_window", 4, "vector.encoder_window=4: must be odd"),
        ("tasks.names", "sum,sun", "tasks.names='sum,sun': must be two .* of sum, largest, "),
        ("tasks.names", "sum", "tasks.names='sum': must be two or more"),
        ("tasks.names", "sum,range,sum", "tasks.names='sum,range,sum': must be two or more diff"),
        ("tasks.names", "", "tasks.names='': must be two or more"),
        ("tasks.num_train", 81, "tasks.num_train=81: must be at most 80"),
        ("tasks.description_dropout", 0.0, "tasks.description_dropout=0.0: must be in"),
        ("model.context_length", 8, "tasks.num_digits=2: must be such that"),
        ("vector.dim", 0, "vector.dim=0: must be at least 1"),
    ],
)
def test_a_bad_setting_is_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        tiny.spec(**{name: value})


def test_compositions_of_tasks_that_have_none_are_refused():
    with pytest.raises(ValueError, match=r"tasks.trains_compositions=True: must be False with ta"):
        tiny.spec(**{"tasks.names": "sum,reverse", "tasks.trains_compositions": True})


def test_a_vector_that_does_nothing_is_refused():
    vector = tiny.spec().vector
    with pytest.raises(ValueError, match="the vector would do nothing"):
        dataclasses.replace(vector, shifts_router=False, modulates_blocks=False)


@pytest.mark.parametrize("compositions", [False, True])
@pytest.mark.parametrize("each", [2, 3])
@pytest.mark.deep
def test_every_task_counts_once_on_every_heldout_input(monkeypatch, compositions, each):
    """20 tasks do not fill the last batch, and 3 inputs a description are no part of 20 inputs."""
    changes = {"tasks.trains_compositions": compositions, "tasks.inputs_per_description": each}
    spec = tiny.spec(**changes)
    data = batches.make_data(spec, tokenizers.bytes_tokenizer())
    listed = (data.train_descriptions, data.heldout_descriptions)
    known = {tuple(row) for of in listed for row in of.tokens[of.task_ids == 0]}
    first_input = data.heldout.prompts[0]

    def is_first_task(_, batch):
        return np.repeat([tuple(row) in known for row in batch.description], each)

    def is_first_input(_, batch):
        return (batch.rows.tokens[:, : len(first_input)] == first_input).all(axis=1)

    for is_right, share in ((is_first_task, len(data.tasks)), (is_first_input, 20)):
        monkeypatch.setattr(step, "make_right", lambda _, is_right=is_right: is_right)
        told = stage.build(spec, data).measure(types.SimpleNamespace(params={}, balance={}))
        assert told == pytest.approx(dict.fromkeys(told, 1 / share)) and len(told) == 2


@pytest.mark.deep
def test_a_resumed_run_equals_one_that_never_stopped_and_is_measured(tmp_path):
    spec = tiny.spec()
    stage.train(spec, tmp_path / "whole", console=QUIET)
    again = dataclasses.replace(spec, train=dataclasses.replace(spec.train, restore_step=2))
    whole = lines(tmp_path / "whole")
    stage.train(again, tmp_path / "whole", console=QUIET)
    assert lines(tmp_path / "whole") == whole
    steering.main(tmp_path / "whole", steering.Asked(spec, []), None)
    found = json.loads((tmp_path / "whole" / "steering.json").read_text())
    assert found["chance"]["uniform"] <= found["chance"]["best"]
    assert set(found["information"]) == {"prompt", "all"}
    assert (tmp_path / "whole" / "task_experts.png").read_bytes().startswith(b"\x89PNG")
