"""At least 40 descriptions of each task, 10 of them held out, none of two tasks."""

import itertools

import pytest

from deepseek_jax.data.steering import tasks, templates

ALL = (*tasks.TASKS, *tasks.TRAINED_COMPOSITIONS, *tasks.LEFT_OUT)


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_templates_are_enough_and_held_out_ones_are_others(task):
    found = templates.of_task(task)
    sentences = {*found.train, *found.heldout}
    assert len(sentences) == len(found.train) + len(found.heldout) >= 40
    assert len(found.heldout) == 10
    assert all(len(text) <= templates.MAX_CHARACTERS and text.isascii() for text in sentences)


def test_no_description_is_shared():
    listed = [{*found.train, *found.heldout} for found in map(templates.of_task, ALL)]
    listed += [set(words) for words in templates.REWORDED.values()]
    assert not [1 for one, other in itertools.combinations(listed, 2) if one & other]
