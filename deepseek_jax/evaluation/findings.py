"""What an evaluation found: the numbers behind a report, and the verdicts on them. Floor 5."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from deepseek_jax.evaluation import bits as bits_lib
from deepseek_jax.evaluation.baselines import Baselines
from deepseek_jax.evaluation.bits import DocumentBits
from deepseek_jax.evaluation.bootstrap import Estimate
from deepseek_jax.evaluation.expert_usage import KindInformation
from deepseek_jax.evaluation.heldout import HeldoutLoss
from deepseek_jax.ops import balance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What was run.

    Attributes:
      name: of the config.
      command: the line that starts it.
      versions: of Python and the packages that the numbers depend on.
      device: kind and number.
      num_steps: optimizer steps done.
      num_tokens: targets trained on, repetitions included.
      train_seconds: time in training steps.
      evaluation_seconds: time of this evaluation.
    """

    name: str
    command: str
    versions: dict[str, str]
    device: str
    num_steps: int
    num_tokens: int
    train_seconds: float
    evaluation_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """What it was run on.

    Attributes:
      source: `data.source`.
      sha256: of the whole corpus.
      num_train_documents: documents to train on.
      num_train_bytes: their text.
      num_train_targets: their tokens, ends of documents included.
      num_heldout_documents: documents that were measured, the last perhaps in part.
      vocab_size: entries of the tokenizer.
    """

    source: str
    sha256: str
    num_train_documents: int
    num_train_bytes: int
    num_train_targets: int
    num_heldout_documents: int
    vocab_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A baseline on the held-out text.

    Attributes:
      name: what it is called in the report.
      bits_per_byte: of the baseline.
      lead: its bits per byte less the model's, paired over documents; above 0 if the model is
        better.
      must_be_beaten: whether the model fails when the lead is not above 0.
    """

    name: str
    bits_per_byte: Estimate
    lead: Estimate
    must_be_beaten: bool

    @property
    def is_beaten(self) -> bool:
        """Whether the model needs fewer bits."""
        return self.lead.value > 0.0

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the lead lies on one side of 0."""
        if self.lead.low is None or self.lead.high is None:
            return False
        return self.lead.low > 0.0 or self.lead.high < 0.0


class LayerHealth(NamedTuple):
    """A layer's router on the held-out text.

    Attributes:
      load_max_over_mean: load of the busiest expert over the mean.
      entropy: mean entropy of the router's probabilities, nats.
      dropped_share: dropped assignments over all.
      unused: ids of the experts that no token chose.
    """

    load_max_over_mean: float
    entropy: float
    dropped_share: float
    unused: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts on the held-out text; a dense model has none.

    Attributes:
      num_experts: E.
      layers: health of each layer.
      load_by_kind: assignments [layers, E] by kind of text.
      information: of expert and kind; None if there is one kind only.
    """

    num_experts: int
    layers: tuple[LayerHealth, ...]
    load_by_kind: dict[str, Int64[np.ndarray, "layers E"]]
    information: KindInformation | None


class Sample(NamedTuple):
    """A prompt and what the model wrote behind it."""

    prompt: str
    completion: str


class Plot(NamedTuple):
    """A picture beside the report: its file name and what it shows."""

    file: str
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything a report says.

    Attributes:
      run: what was run.
      corpus: on what.
      parameters: counts by name, "total" and "active" among them.
      heldout: the model on held-out text.
      scores: the baselines.
      experts: None in a dense model.
      samples: texts from the model.
      plots: pictures, in the order of `plots`.
    """

    run: Run
    corpus: Corpus
    parameters: dict[str, int]
    heldout: HeldoutLoss
    scores: tuple[Score, ...]
    experts: Experts | None
    samples: tuple[Sample, ...]
    plots: tuple[Plot, ...]

    @property
    def passes(self) -> bool:
        """Whether every baseline that must be beaten is."""
        return all(score.is_beaten for score in self.scores if score.must_be_beaten)


def score_baselines(model: DocumentBits, baselines: Baselines, *, seed: int) -> tuple[Score, ...]:
    """The model against every baseline; the token bigram and gzip must be beaten.

    Args:
      model: code lengths of the documents under the model (`heldout.document_bits`).
      baselines: of the same documents.
      seed: of the bootstrap.
    """
    rows = (
        ("token bigram", baselines.token_bigram, True),
        ("gzip -9", baselines.gzip, True),
        ("xz -9", baselines.xz, False),
        ("byte bigram", baselines.byte_bigram, False),
    )
    return tuple(
        Score(
            name=name,
            bits_per_byte=bits_lib.bits_per_byte(measured, seed=seed),
            lead=bits_lib.difference(model, measured, seed=seed),
            must_be_beaten=must_be_beaten,
        )
        for name, measured, must_be_beaten in rows
    )


def layers_health(stats: balance.RouterStats) -> tuple[LayerHealth, ...]:
    """The health of each layer from statistics with a leading layer axis."""
    ratios, entropies = balance.max_over_mean_load(stats), balance.mean_entropy(stats)
    return tuple(
        LayerHealth(
            load_max_over_mean=float(ratios[i]),
            entropy=float(entropies[i]),
            dropped_share=float(stats.dropped[i] / max(float(load.sum()), 1.0)),
            unused=tuple(int(e) for e in np.flatnonzero(load == 0.0)),
        )
        for i, load in enumerate(np.asarray(stats.load))
    )
