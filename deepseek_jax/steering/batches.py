"""What a step of the stage sees: by its number and the seed alone. Floor 6."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from deepseek_jax.core.steering_spec import SteeringRunSpec
from deepseek_jax.data import order
from deepseek_jax.data.steering import encoded, tasks, templates
from deepseek_jax.data.steering.encoded import Rows, Table
from deepseek_jax.data.steering.tasks import Task
from deepseek_jax.data.tokenizers import Tokenizer

# Held-out inputs of each task that a training measures.
_NUM_MEASURED = 32


class Described(NamedTuple):
    """Descriptions as tokens, and the number of the task that each describes."""

    tokens: Int32[np.ndarray, "R W"]
    task_ids: Int[np.ndarray, " R"]


class TaskData(NamedTuple):
    """All that a run draws from.

    Attributes:
      tasks: of the training, by number.
      train_inputs: strings of digits to train on.
      heldout_inputs: others, to measure.
      train: their prompts and answers.
      heldout: the same of the held-out inputs.
      train_descriptions: of templates to train on.
      heldout_descriptions: of templates held out.
    """

    tasks: tuple[Task, ...]
    train_inputs: list[str]
    heldout_inputs: list[str]
    train: Table
    heldout: Table
    train_descriptions: Described
    heldout_descriptions: Described


class Batch(NamedTuple):
    """Rows, and descriptions of which each is for as many rows one after the other."""

    rows: Rows
    description: Int32[np.ndarray, "R W"]


class Measured(NamedTuple):
    """A batch to measure, and its rows that count; the others only fill it up."""

    batch: Batch
    is_counted: Bool[np.ndarray, " B"]


def make_data(spec: SteeringRunSpec, tokenizer: Tokenizer) -> TaskData:
    """Splits the inputs and encodes everything.

    Raises:
      DescriptionError: a template is longer than `vector.description_length`.
    """
    listed = tasks.training_tasks(
        spec.tasks.names, with_compositions=spec.tasks.trains_compositions
    )
    train, heldout = tasks.split_inputs(
        num_digits=spec.tasks.num_digits,
        num_train=spec.tasks.num_train,
        num_heldout=spec.tasks.num_heldout,
        seed=spec.seed,
    )
    worded = [templates.of_task(task) for task in listed]
    length = spec.vector.description_length
    return TaskData(
        listed,
        train,
        heldout,
        encoded.table(train, listed, tokenizer),
        encoded.table(heldout, listed, tokenizer),
        describe([each.train for each in worded], tokenizer, length=length),
        describe([each.heldout for each in worded], tokenizer, length=length),
    )


def describe(texts: list[tuple[str, ...]], tokenizer: Tokenizer, *, length: int) -> Described:
    """The descriptions of each task, in order.

    Args:
      texts: of each task.
      tokenizer: of the model.
      length: W.

    Raises:
      DescriptionError: names the task and the description's number.
    """
    flat = [text for listed in texts for text in listed]
    where = [
        f"task {task}, description {number}"
        for task, listed in enumerate(texts)
        for number in range(len(listed))
    ]
    task_ids = np.repeat(np.arange(len(texts)), [len(listed) for listed in texts])
    return Described(encoded.descriptions(flat, tokenizer, length=length, where=where), task_ids)


def draw(spec: SteeringRunSpec, data: TaskData, *, step: int) -> Batch:
    """The batch of a step: tasks in turn, inputs epoch by epoch, descriptions at random."""
    generator = np.random.default_rng([spec.seed, step])
    task_ids = order.batch_ids(
        step=step,
        batch_size=spec.tasks.descriptions_per_step,
        num_rows=len(data.tasks),
        seed=spec.seed,
    )
    chosen = [
        generator.choice(np.flatnonzero(data.train_descriptions.task_ids == task))
        for task in task_ids
    ]
    is_missing = generator.random(len(chosen)) < spec.tasks.description_dropout
    description = data.train_descriptions.tokens[chosen]
    description = np.where(is_missing[:, None], encoded.PADDING, description).astype(np.int32)
    input_ids = order.batch_ids(
        step=step, batch_size=spec.tasks.batch_size, num_rows=len(data.train_inputs), seed=spec.seed
    )
    rows = encoded.rows(
        data.train,
        input_ids,
        np.repeat(task_ids, spec.tasks.inputs_per_description),
        length=spec.tasks.sequence_length(spec.model.block_size),
    )
    return Batch(rows, description)


def heldout(spec: SteeringRunSpec, data: TaskData, described: Described) -> list[Measured]:
    """The first held-out inputs, each counted once under every task, with descriptions drawn.

    Args:
      spec: the batches are of the shape of its training's.
      data: of `make_data`.
      described: descriptions of all tasks.
    """
    size, each = spec.tasks.descriptions_per_step, spec.tasks.inputs_per_description
    num_inputs = min(_NUM_MEASURED, len(data.heldout_inputs))
    generator = np.random.default_rng(spec.seed)
    # Whole descriptions for every task, then whole batches.
    of_task = np.arange(-(-num_inputs // each) * each)
    task_ids = np.repeat(np.arange(len(data.tasks)), len(of_task) // each)
    num_rows = len(task_ids) * each
    task_ids = np.resize(task_ids, -(-len(task_ids) // size) * size)
    places = np.resize(of_task, len(task_ids) * each)
    is_counted = (places < num_inputs) & (np.arange(len(places)) < num_rows)
    made = []
    for start in range(0, len(task_ids), size):
        part = task_ids[start : start + size]
        at = slice(start * each, (start + size) * each)
        chosen = [generator.choice(np.flatnonzero(described.task_ids == task)) for task in part]
        rows = encoded.rows(
            data.heldout,
            places[at] % num_inputs,
            np.repeat(part, each),
            length=spec.tasks.sequence_length(spec.model.block_size),
        )
        made.append(Measured(Batch(rows, described.tokens[np.array(chosen)]), is_counted[at]))
    return made
