"""Typed, frozen settings of a run: data, optimizer, training, evaluation. Floor 0.

Each class is one node of a config file (`DataSpec` is `config.data` and so on) and checks
itself when it is made, as `model_spec` does; `RunSpec` is the whole file.
"""

import dataclasses
from typing import Literal

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.config import require
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where text comes from and how it becomes rows of tokens.

    Attributes:
      source: "stdlib" (sources and docstrings of the Python standard library), "packages"
        (of all installed packages), "folder" (every text file below `path`) or "jsonl".
      path: the folder or file; None for the installed sources.
      field: the text field of a JSONL line; None for other sources.
      prompt_field: the field of a JSONL line whose text stands in front of the one in `field`,
        is read and not scored; None for no prompts.
      max_bytes: documents are taken, in an order fixed by hash, until this many bytes of
        text, prompts included, are reached; None takes all. What was left out is recorded.
      tokenizer: "bytes", "tagged_bytes" (with one token for each tag of a response), "bpe"
        (trained on the training split) or "file".
      tokenizer_path: a `tokenizer.json`; only for "file".
      bpe_vocab_size: entries of the trained tokenizer; None for others.
      heldout_fraction: share of the document groups kept for evaluation.
      sequence_length: L, tokens of a row.
    """

    source: Literal["stdlib", "packages", "folder", "jsonl"]
    path: str | None
    field: str | None
    prompt_field: str | None
    max_bytes: int | None
    tokenizer: Literal["bytes", "tagged_bytes", "bpe", "file"]
    tokenizer_path: str | None
    bpe_vocab_size: int | None
    heldout_fraction: float
    sequence_length: int

    def __post_init__(self) -> None:
        """Checks ranges and which fields go together."""
        needs_path = self.source in ("folder", "jsonl")
        pairs = (
            ("path", self.path, needs_path, f"data.source={self.source!r}"),
            ("field", self.field, self.source == "jsonl", f"data.source={self.source!r}"),
            (
                "tokenizer_path",
                self.tokenizer_path,
                self.tokenizer == "file",
                f"data.tokenizer={self.tokenizer!r}",
            ),
            (
                "bpe_vocab_size",
                self.bpe_vocab_size,
                self.tokenizer == "bpe",
                f"data.tokenizer={self.tokenizer!r}",
            ),
        )
        for name, value, needed, because in pairs:
            require(
                (value is not None) == needed,
                f"data.{name}",
                value,
                f"{'given' if needed else 'None'} with {because}",
            )
        if self.prompt_field is not None:
            require(
                self.source == "jsonl" and self.prompt_field != self.field,
                "data.prompt_field",
                self.prompt_field,
                f'None, or with data.source="jsonl" another field than data.field={self.field!r}',
            )
        if self.bpe_vocab_size is not None:
            require(
                self.bpe_vocab_size >= 300,
                "data.bpe_vocab_size",
                self.bpe_vocab_size,
                "at least 300 (256 bytes, the special tokens and some merges)",
            )
        if self.max_bytes is not None:
            require(self.max_bytes >= 1, "data.max_bytes", self.max_bytes, "at least 1")
        require(
            0.0 < self.heldout_fraction < 1.0,
            "data.heldout_fraction",
            self.heldout_fraction,
            "in (0, 1)",
        )
        require(
            self.sequence_length >= 2, "data.sequence_length", self.sequence_length, "at least 2"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """The optimizer and its schedule: linear warmup, then cosine decay.

    Attributes:
      name: "adamw", or "muon" for the matrices of the layers with Adam for the rest.
      learning_rate: peak rate of Adam's parameters.
      muon_learning_rate: peak rate of Muon's parameters; 0.0 with "adamw".
      warmup_steps: steps from 0 to the peak.
      final_fraction: the last rate over the peak.
      weight_decay: decoupled decay of matrices; never of norms, biases and embeddings.
      beta1: Adam's first moment decay.
      beta2: Adam's second moment decay.
      eps: Adam's epsilon.
      clip_norm: largest global norm of a gradient.
    """

    name: Literal["adamw", "muon"]
    learning_rate: float
    muon_learning_rate: float
    warmup_steps: int
    final_fraction: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    clip_norm: float

    def __post_init__(self) -> None:
        """Checks ranges and the pairing of the two learning rates."""
        for name in ("learning_rate", "eps", "clip_norm"):
            require(getattr(self, name) > 0.0, f"optimizer.{name}", getattr(self, name), "above 0")
        require(
            (self.muon_learning_rate > 0.0) == (self.name == "muon"),
            "optimizer.muon_learning_rate",
            self.muon_learning_rate,
            f"{'above 0' if self.name == 'muon' else '0.0'} with optimizer.name={self.name!r}",
        )
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "at least 0")
        require(self.weight_decay >= 0.0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0.0 <= value < 1.0, f"optimizer.{name}", value, "in [0, 1)")
        require(
            0.0 <= self.final_fraction <= 1.0,
            "optimizer.final_fraction",
            self.final_fraction,
            "in [0, 1]",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The training loop. Every duration is in optimizer steps.

    Attributes:
      num_steps: steps of the whole run.
      batch_size: B, rows of one optimizer step.
      num_microbatches: equal parts that a batch is accumulated over.
      log_every: steps between two lines of metrics.
      eval_every: steps between two held-out measurements; the last step is measured too.
      eval_rows: held-out rows of such a measurement.
      checkpoint_every: steps between two checkpoints; the last step is saved too.
      keep_checkpoints: newest checkpoints kept.
      restore_step: the saved step to go on from, in a run directory that has it; newer ones are
        set aside. It acts at every start that names it. None goes on from the newest.
      start_from: a run directory whose newest finished checkpoint has the parameters and choice
        biases that the run begins with; None begins with random ones. Optimizer and steps begin
        afresh. A run that goes on doesn't look there again.
      profile_at: step at which a profile of `profile_steps` steps starts; None for none.
      profile_steps: steps of the profile.
    """

    num_steps: int
    batch_size: int
    num_microbatches: int
    log_every: int
    eval_every: int
    eval_rows: int
    checkpoint_every: int
    keep_checkpoints: int
    restore_step: int | None
    start_from: str | None
    profile_at: int | None
    profile_steps: int

    def __post_init__(self) -> None:
        """Checks ranges and that a batch splits into equal parts."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_open = field.name in ("profile_at", "restore_step") and value is None
            if field.name == "start_from" or is_open:
                continue
            least = 0 if field.name == "profile_at" else 1
            require(value >= least, f"train.{field.name}", value, f"at least {least}")
        require(
            self.batch_size % self.num_microbatches == 0,
            "train.num_microbatches",
            self.num_microbatches,
            f"a divisor of train.batch_size={self.batch_size}",
        )
        if self.profile_at is not None:
            require(
                self.profile_at + self.profile_steps <= self.num_steps,
                "train.profile_at",
                self.profile_at,
                f"at most train.num_steps - train.profile_steps "
                f"= {self.num_steps - self.profile_steps}",
            )

    @property
    def microbatch_size(self) -> int:
        """Rows that are computed at once."""
        return self.batch_size // self.num_microbatches


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """The measurement after training (`experiments.evaluate` and the report).

    Attributes:
      num_rows: held-out rows measured; None measures all of them.
      batch_size: rows of one forward pass.
      prompt: text that the report's samples continue.
      sample_tokens: tokens of a sample.
      temperature: sampling temperature; 0.0 is greedy.
    """

    num_rows: int | None
    batch_size: int
    prompt: str
    sample_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.num_rows is not None:
            require(self.num_rows >= 1, "eval.num_rows", self.num_rows, "at least 1")
        require(self.batch_size >= 1, "eval.batch_size", self.batch_size, "at least 1")
        require(self.sample_tokens >= 1, "eval.sample_tokens", self.sample_tokens, "at least 1")
        require(self.temperature >= 0.0, "eval.temperature", self.temperature, "at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A whole config file."""

    seed: int
    model: ModelSpec
    mesh: MeshSpec
    data: DataSpec
    optimizer: OptimizerSpec
    train: TrainSpec
    eval: EvalSpec

    def __post_init__(self) -> None:
        """Checks the rules that span two nodes."""
        check_text(self.seed, self.model, self.data, self.optimizer, self.train.num_steps)
        check_mesh(self.mesh, self.model, num_rows=self.train.microbatch_size)


def check_text(
    seed: int, model: ModelSpec, data: DataSpec, optimizer: OptimizerSpec, num_steps: int
) -> None:
    """Checks what every run on text must hold.

    Raises:
      ValueError: names the setting.
    """
    require(seed >= 0, "seed", seed, "at least 0")
    require(
        data.sequence_length % model.block_size == 0,
        "data.sequence_length",
        data.sequence_length,
        f"a multiple of model.block_size={model.block_size}",
    )
    require(
        data.sequence_length <= model.context_length,
        "data.sequence_length",
        data.sequence_length,
        f"at most model.context_length={model.context_length}",
    )
    if data.bpe_vocab_size is not None:
        require(
            data.bpe_vocab_size <= model.vocab_size,
            "data.bpe_vocab_size",
            data.bpe_vocab_size,
            f"at most model.vocab_size={model.vocab_size}",
        )
    require(
        optimizer.warmup_steps < num_steps,
        "optimizer.warmup_steps",
        optimizer.warmup_steps,
        f"below train.num_steps={num_steps}",
    )


def check_mesh(mesh: MeshSpec, model: ModelSpec, *, num_rows: int) -> None:
    """Checks that rows and model of a run on text fit a mesh.

    Raises:
      ValueError: names the setting.
    """
    mesh_spec.check_fit(mesh, model, num_rows=num_rows)
    require(
        mesh.exchange == "bounded" or model.dispatch == "dropless",
        "mesh.exchange",
        mesh.exchange,
        f'"bounded" with model.dispatch={model.dispatch!r}: the exact exchange is for '
        "models that drop nothing",
    )
