"""What a trained model does with right, wrong, missing and composed descriptions. Floor 6."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from deepseek_jax.data.steering import encoded, tasks, templates
from deepseek_jax.data.steering.description_file import UserDescription
from deepseek_jax.data.steering.tasks import Chance, Task
from deepseek_jax.evaluation import expert_usage
from deepseek_jax.evaluation.expert_usage import ExpertCounts, KindInformation
from deepseek_jax.steering import answers, batches, shares
from deepseek_jax.steering.answers import Answerer
from deepseek_jax.steering.batches import Described, TaskData
from deepseek_jax.steering.shares import Share

_SEED = 0


class ByTask(NamedTuple):
    """One way of describing: the share of right answers over all tasks and by task."""

    all: Share
    by_task: dict[str, Share]


class Wrong(NamedTuple):
    """Descriptions of another task than the one asked for, whose answer is another one.

    Attributes:
      described: share of answers that do what is described.
      asked: share of answers that do what was asked for.
    """

    described: Share
    asked: Share


class Composed(NamedTuple):
    """A composition that no training had.

    Attributes:
      right: share of answers that do both, one after the other.
      first: share of answers that do the first part only, where that is another answer; None if
        it never is.
      second: the same of the second part.
      example: a description.
    """

    right: Share
    first: Share | None
    second: Share | None
    example: str


class Followed(NamedTuple):
    """A user's description: the task that most answers do, and how many of them."""

    text: str
    meant: str | None
    right: Share | None
    most: str
    share: Share


class Findings(NamedTuple):
    """All that is measured.

    Attributes:
      trained: with templates of the training.
      heldout: with templates held out.
      reworded: with wordings of which the training had no part.
      missing: without a description.
      wrong: with descriptions of other tasks.
      chance: exact, on the same inputs.
      compositions: by name; none where no parts of one are tasks of the training.
      information: of expert and task, on the prompts' tokens and on all; None in a dense model.
      usage: assignments by task that the information is of.
      followed: the user's descriptions.
    """

    trained: ByTask
    heldout: ByTask
    reworded: ByTask
    missing: ByTask
    wrong: Wrong
    chance: Chance
    compositions: dict[str, Composed]
    information: dict[str, KindInformation]
    usage: dict[str, ExpertCounts]
    followed: tuple[Followed, ...]


class Examiner:
    """Asks a model every task on the same held-out inputs."""

    def __init__(self, answerer: Answerer, data: TaskData, *, num_inputs: int, width: int) -> None:
        """Takes the first `num_inputs` held-out inputs; `width` is W."""
        self._answerer, self._data, self._width = answerer, data, width
        self._inputs = data.heldout_inputs[:num_inputs]
        self._generator = np.random.default_rng(_SEED)

    def findings(self, *, length: int, user: Sequence[UserDescription]) -> Findings:
        """Measures everything; `length` is L of whole rows.

        Raises:
          DescriptionError: a user's description is too long.
        """
        own = self._encoded([line.text for line in user], [line.where for line in user])
        counts = self._usage(length) if self._answerer.model.spec.num_experts > 1 else {}
        information = {
            name: found
            for name, usage in counts.items()
            if (found := expert_usage.kind_information(usage, seed=_SEED)) is not None
        }
        reworded: list[tuple[str, ...]] = [
            templates.REWORDED[task.name] for task in self._data.tasks if task.kind != "composition"
        ]
        return Findings(
            trained=self._described(self._data.train_descriptions),
            heldout=self._described(self._data.heldout_descriptions),
            reworded=self._described(self._describe(reworded)),
            missing=self._described(None),
            wrong=self._wrong(),
            chance=tasks.chance(self._data.tasks, self._inputs),
            compositions={task.name: self._composed(task) for task in self._left_out()},
            information=information,
            usage=counts,
            followed=tuple(self._followed(line, ids) for line, ids in zip(user, own, strict=True)),
        )

    def _encoded(self, texts: list[str], where: list[str]) -> Int32[np.ndarray, "R W"]:
        tokenizer = self._answerer.tokenizer
        return encoded.descriptions(texts, tokenizer, length=self._width, where=where)

    def _describe(self, texts: list[tuple[str, ...]]) -> Described:
        return batches.describe(texts, self._answerer.tokenizer, length=self._width)

    def _answers(
        self, input_ids: Int[np.ndarray, " N"], description: Int32[np.ndarray, "N W"]
    ) -> list[str | None]:
        return answers.greedy(self._answerer, self._data.heldout.prompts[input_ids], description)

    def _grid(self, num_tasks: int) -> tuple[np.ndarray, np.ndarray]:
        """Every input under every task: input and task of each row."""
        input_ids = np.tile(np.arange(len(self._inputs)), num_tasks)
        return input_ids, np.repeat(np.arange(num_tasks), len(self._inputs))

    def _drawn(self, described: Described, task_ids: np.ndarray) -> Int[np.ndarray, " N"]:
        """The number of a description of each task, drawn from its own."""
        by_task = [np.flatnonzero(described.task_ids == task) for task in range(task_ids.max() + 1)]
        return np.array([self._generator.choice(by_task[task]) for task in task_ids])

    def _described(self, described: Described | None) -> ByTask:
        """Answers to all that is described; without descriptions, to every task."""
        if described is None:
            input_ids, task_ids = self._grid(len(self._data.tasks))
            ids, tokens = np.zeros_like(task_ids), np.full((1, self._width), encoded.PADDING)
        else:
            input_ids, task_ids = self._grid(int(described.task_ids.max()) + 1)
            ids, tokens = self._drawn(described, task_ids), described.tokens
        told = self._answers(input_ids, tokens[ids].astype(np.int32))
        right = np.array(
            [
                answer == self._data.tasks[task].answer(self._inputs[i])
                for answer, task, i in zip(told, task_ids, input_ids, strict=True)
            ]
        )
        by_task = {
            self._data.tasks[task].name: shares.share(right[at], ids[at], input_ids[at])
            for task in np.unique(task_ids)
            for at in (task_ids == task,)
        }
        return ByTask(shares.share(right, ids, input_ids), by_task)

    def _wrong(self) -> Wrong:
        input_ids, asked = self._grid(len(self._data.tasks))
        listed = self._data.tasks
        described = (asked + self._generator.integers(1, len(listed), len(asked))) % len(listed)
        wanted = [
            (listed[one].answer(self._inputs[i]), listed[other].answer(self._inputs[i]))
            for one, other, i in zip(asked, described, input_ids, strict=True)
        ]
        differ = np.array([one != other for one, other in wanted])
        ids = self._drawn(self._data.train_descriptions, described)
        told = self._answers(input_ids, self._data.train_descriptions.tokens[ids])
        does = np.array(
            [[answer == one for one in pair] for answer, pair in zip(told, wanted, strict=True)]
        )
        of_asked, of_described = (
            shares.share(right[differ], ids[differ], input_ids[differ]) for right in does.T
        )
        return Wrong(described=of_described, asked=of_asked)

    def _left_out(self) -> tuple[Task, ...]:
        """The compositions that no training has, of tasks that this one has."""
        return tasks.composed_of(tasks.LEFT_OUT, self._data.tasks)

    def _composed(self, task: Task) -> Composed:
        worded = templates.of_task(task).train
        input_ids, task_ids = self._grid(1)
        described = self._describe([worded])
        ids = self._drawn(described, task_ids)
        told = self._answers(input_ids, described.tokens[ids])
        by_name = {one.name: one for one in tasks.TASKS}

        def alone(name: str) -> Share | None:
            apart = tasks.differ(task, by_name[name], self._inputs)
            does = self._does(told, by_name[name])
            return shares.share(does[apart], ids[apart], input_ids[apart]) if apart.any() else None

        first, second = map(alone, task.name.split("+"))
        right = shares.share(self._does(told, task), ids, input_ids)
        return Composed(right, first, second, worded[0])

    def _does(self, told: list[str | None], task: Task) -> np.ndarray:
        """Whether the answers to the inputs, in order, do a task."""
        pairs = zip(told, self._inputs, strict=True)
        return np.array([answer == task.answer(digits) for answer, digits in pairs])

    def _followed(self, line: UserDescription, ids: Int32[np.ndarray, " W"]) -> Followed:
        input_ids, _ = self._grid(1)
        told = self._answers(input_ids, np.tile(ids[None], (len(input_ids), 1)))
        only = np.zeros(len(input_ids), np.int64)
        does = {
            task.name: shares.share(self._does(told, task), only, input_ids)
            for task in self._data.tasks
        }
        most = max(does, key=lambda name: does[name].value)
        right = None if line.task is None else does[line.task]
        return Followed(line.text, line.task, right, most, does[most])

    def _usage(self, length: int) -> dict[str, ExpertCounts]:
        input_ids, task_ids = self._grid(len(self._data.tasks))
        described = self._data.train_descriptions
        description = described.tokens[self._drawn(described, task_ids)]
        return answers.expert_counts(
            self._answerer, self._data.heldout, input_ids, task_ids, description, length=length
        )
