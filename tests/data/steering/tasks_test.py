"""Tasks by hand, the split of their inputs, and what is right by chance."""

import pytest

from deepseek_jax.core.steering_spec import TASK_NAMES
from deepseek_jax.data.steering import tasks

BY_HAND = {
    "sum": "9",
    "largest": "4",
    "smallest": "1",
    "range": "3",
    "reverse": "1413",
    "ascending": "1134",
    "descending": "4311",
    "rotate": "1413",
    "double": "33114411",
    "evens": "4",
    "commas": "3,1,4,1",
    "brackets": "[3141]",
}


def test_answers_by_hand():
    assert {task.name: task.answer("3141") for task in tasks.TASKS} == BY_HAND
    assert tasks.composition("reverse", "double").answer("123") == "332211"
    assert tasks.composition("ascending", "rotate").answer("312") == "231"
    assert {task.name: task for task in tasks.TASKS}["evens"].answer("135") == tasks.NONE


def test_the_split_holds_different_inputs_that_more_training_does_not_move():
    few = tasks.split_inputs(num_digits=2, num_train=10, num_heldout=20, seed=3)
    more = tasks.split_inputs(num_digits=2, num_train=80, num_heldout=20, seed=3)
    assert few[1] == more[1]
    assert len({*more[0], *more[1]}) == 100


def test_chance_is_counted_from_the_answers():
    listed = tasks.TASKS[1:4]  # largest, smallest, range
    # On 33: 3, 3, 0, so 5/9 evenly and 2/3 at best; on 31: 3, 1, 2, a third each.
    found = tasks.chance(listed, ["33", "31"])
    assert found.uniform == pytest.approx((5 / 9 + 1 / 3) / 2)
    assert found.best == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_every_left_out_composition_is_of_no_training():
    listed = tasks.training_tasks(",".join(TASK_NAMES), with_compositions=True)
    trained = {task.name for task in listed}
    assert len(trained) == len(listed) == len(TASK_NAMES) + len(tasks.TRAINED_COMPOSITIONS)
    assert not trained & {task.name for task in tasks.LEFT_OUT}


def test_every_task_can_be_named():
    assert tuple(task.name for task in tasks.TASKS) == TASK_NAMES


def test_fewer_tasks_have_fewer_compositions():
    names = "double,ascending,rotate"
    alone = tasks.training_tasks(names, with_compositions=False)
    assert [task.name for task in alone] == ["double", "ascending", "rotate"]
    every = tasks.training_tasks(names, with_compositions=True)
    assert [task.name for task in every[3:]] == ["ascending+double", "rotate+double"]
    left_out = tasks.composed_of(tasks.LEFT_OUT, alone)
    assert [task.name for task in left_out] == ["ascending+rotate"]


def test_some_left_out_composition_differs_from_every_single_task():
    _, inputs = tasks.split_inputs(num_digits=4, num_train=1, num_heldout=200, seed=0)
    whole = tasks.composition("ascending", "rotate")
    assert all(tasks.differ(whole, task, inputs).mean() > 0.5 for task in tasks.TASKS)
