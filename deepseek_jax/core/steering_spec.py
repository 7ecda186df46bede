"""Typed, frozen settings of the task vector and of the stage that trains it. Floor 0.

A decoder that is given no `TaskVectorSpec` has none of what is described here: neither
parameters nor operations.
"""

import dataclasses
from typing import Literal

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.config import require
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.run_spec import OptimizerSpec
from deepseek_jax.core.stage_spec import StageTrainSpec

# What a decoder can be told to do; `data/steering/tasks.py` says what each of them is.
TASK_NAMES = (
    *("sum", "largest", "smallest", "range", "reverse", "ascending", "descending", "rotate"),
    *("double", "evens", "commas", "brackets"),
)
# Of the training only with tasks.trains_compositions; every part stands in both places.
TRAINED_COMPOSITIONS = (
    *("reverse+rotate", "rotate+reverse", "ascending+double", "rotate+double"),
    *("reverse+commas", "descending+commas", "ascending+brackets", "descending+evens"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskVectorSpec:
    """From the description of a task to a vector, and what the vector does to the layers.

    Attributes:
      dim: Z, width of the task vector.
      description_length: W, tokens of the longest description.
      encoder_dim: width of the encoder.
      encoder_layers: layers of the encoder.
      encoder_window: tokens that one layer sees at once; odd, so that they lie around a token.
      num_queries: weighted means over the description that make the vector.
      shifts_router: whether the vector is added, through a matrix, to the router's logits.
      modulates_blocks: whether it scales and shifts the normed input of attention and
        feed-forward part.
    """

    dim: int
    description_length: int
    encoder_dim: int
    encoder_layers: int
    encoder_window: int
    num_queries: int
    shifts_router: bool
    modulates_blocks: bool

    def __post_init__(self) -> None:
        """Checks ranges, and that the vector does something."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                require(value >= 1, f"vector.{field.name}", value, "at least 1")
        require(self.encoder_window % 2 == 1, "vector.encoder_window", self.encoder_window, "odd")
        require(
            self.shifts_router or self.modulates_blocks,
            "vector.shifts_router",
            self.shifts_router,
            "True with vector.modulates_blocks=False: the vector would do nothing",
        )

    def check_model(self, model: ModelSpec) -> None:
        """Raises a ValueError unless the model has what the vector is to act on."""
        require(
            not (self.shifts_router and model.is_dense),
            "vector.shifts_router",
            self.shifts_router,
            "False in a dense model (model.num_experts=1), which has no router",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TasksSpec:
    """The tasks, the inputs, which all of them share, and how a step draws both.

    Attributes:
      names: of the tasks, of `TASK_NAMES`, with commas between them; two at least, since one
        would need no description.
      num_digits: of an input.
      num_train: inputs to train on.
      num_heldout: inputs that are only measured.
      descriptions_per_step: descriptions of a step, the tasks in turn.
      inputs_per_description: inputs that each of them is followed on.
      description_dropout: share of the descriptions that are left out in training.
      trains_compositions: whether some compositions ("reverse, then ...") of these tasks are
        tasks of the training too; those that are measured never are.
    """

    names: str
    num_digits: int
    num_train: int
    num_heldout: int
    descriptions_per_step: int
    inputs_per_description: int
    description_dropout: float
    trains_compositions: bool

    def __post_init__(self) -> None:
        """Checks names and ranges, and that there are so many inputs."""
        listed = self.names.split(",")
        require(
            len(set(listed)) == len(listed) >= 2 and set(listed) <= set(TASK_NAMES),
            "tasks.names",
            self.names,
            f"two or more different ones of {', '.join(TASK_NAMES)}, with a comma between them",
        )
        require(
            not self.trains_compositions
            or any(set(name.split("+")) <= set(listed) for name in TRAINED_COMPOSITIONS),
            "tasks.trains_compositions",
            self.trains_compositions,
            f"False with tasks.names={self.names!r}, which has both parts of none of "
            f"{', '.join(TRAINED_COMPOSITIONS)}",
        )
        for name in ("num_train", "num_heldout", "descriptions_per_step", "inputs_per_description"):
            require(getattr(self, name) >= 1, f"tasks.{name}", getattr(self, name), "at least 1")
        require(2 <= self.num_digits <= 6, "tasks.num_digits", self.num_digits, "in [2, 6]")
        left = 10**self.num_digits - self.num_heldout
        require(
            self.num_train <= left,
            "tasks.num_train",
            self.num_train,
            f"at most {left}, the inputs of tasks.num_digits={self.num_digits} without the "
            f"tasks.num_heldout={self.num_heldout} held out",
        )
        require(
            0.0 < self.description_dropout < 1.0,
            "tasks.description_dropout",
            self.description_dropout,
            "in (0, 1): a missing description must have been seen in training",
        )

    @property
    def prompt_width(self) -> int:
        """Tokens of a prompt: the begin token, the digits and the sign behind them."""
        return self.num_digits + 2

    @property
    def answer_width(self) -> int:
        """Tokens of the longest answer, every digit twice, and its end token."""
        return 2 * self.num_digits + 1

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self.descriptions_per_step * self.inputs_per_description

    def sequence_length(self, block_size: int) -> int:
        """L: a prompt and its answer but for the last token, in whole blocks."""
        return -(-(self.prompt_width + self.answer_width - 1) // block_size) * block_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class SteeringRunSpec:
    """A config file of the stage that trains a decoder to do what a description says."""

    stage: Literal["steering"]
    seed: int
    model: ModelSpec
    mesh: MeshSpec
    tasks: TasksSpec
    vector: TaskVectorSpec
    optimizer: OptimizerSpec
    train: StageTrainSpec

    def __post_init__(self) -> None:
        """Checks the rules that span two nodes."""
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        model, block = self.model, self.model.block_size
        self.vector.check_model(model)
        require(
            model.dispatch == "dropless",
            "model.dispatch",
            model.dispatch,
            '"dropless": an answer must not depend on the others',
        )
        require(
            model.balance != "bias",
            "model.balance",
            model.balance,
            '"loss", or "none" in a dense model: this stage moves no choice bias',
        )
        cached = -(-self.tasks.prompt_width // block) * block + self.tasks.answer_width
        length = max(self.tasks.sequence_length(block), cached)
        require(
            length <= model.context_length,
            "tasks.num_digits",
            self.tasks.num_digits,
            f"such that a prompt in whole blocks and its answer, {length} tokens, fit "
            f"model.context_length={model.context_length}",
        )
        require(
            self.optimizer.warmup_steps < self.train.num_steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"below train.num_steps={self.train.num_steps}",
        )
        mesh_spec.check_fit(self.mesh, model, num_rows=self.tasks.batch_size)
        require(self.mesh.exchange == "exact", "mesh.exchange", self.mesh.exchange, '"exact"')
