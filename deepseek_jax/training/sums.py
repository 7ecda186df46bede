"""What has been summed since the last line of metrics, and the line made of it. Floor 5."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from deepseek_jax.ops import balance
from deepseek_jax.training.step import StepMetrics


class RunningSums(NamedTuple):
    """Sums over the steps since the last line, on the host; saved with every checkpoint.

    Attributes:
      tokens: targets trained on since the run began.
      num_steps: steps since the last line.
      num_targets: targets of these steps.
      nats: loss summed over these targets.
      aux_loss: balancing losses summed over the steps.
      gradient_norm: norms summed over the steps.
      stats: router statistics, float64 arrays; None in a dense model or before the first step.
    """

    tokens: int = 0
    num_steps: int = 0
    num_targets: int = 0
    nats: float = 0.0
    aux_loss: float = 0.0
    gradient_norm: float = 0.0
    stats: balance.RouterStats | None = None


def add(sums: RunningSums, metrics: StepMetrics) -> RunningSums:
    """The sums with the metrics of one more step, which are on the host."""
    targets = int(metrics.num_targets)
    stats = metrics.stats
    if stats is not None:
        stats = jax.tree.map(lambda value: np.asarray(value, np.float64), stats)
        if sums.stats is not None:
            stats = jax.tree.map(np.add, sums.stats, stats)
    return RunningSums(
        tokens=sums.tokens + targets,
        num_steps=sums.num_steps + 1,
        num_targets=sums.num_targets + targets,
        nats=sums.nats + float(metrics.loss) * targets,
        aux_loss=sums.aux_loss + float(metrics.aux_loss),
        gradient_norm=sums.gradient_norm + float(metrics.gradient_norm),
        stats=stats,
    )


def emptied(sums: RunningSums) -> RunningSums:
    """The sums after a line was written: only the tokens of the whole run go on."""
    return RunningSums(tokens=sums.tokens)


def line(sums: RunningSums) -> dict[str, float | int]:
    """The means since the last line.

    `load_max_over_mean` and `router_entropy` are those of the worst layer (the largest and the
    least). `dropped_share` (of assignments), `devices_per_token` (that it has experts on, 1
    without expert parallelism) and `overflow_share` (of these visits, those that found no row)
    are over all layers, and `unused_experts` counts, over all layers, experts that no token
    chose since the last line. A dense model has none of these.
    """
    values: dict[str, float | int] = {
        "loss": sums.nats / sums.num_targets,
        "aux_loss": sums.aux_loss / sums.num_steps,
        "gradient_norm": sums.gradient_norm / sums.num_steps,
        "tokens": sums.tokens,
    }
    if sums.stats is not None:
        stats = jax.tree.map(lambda value: value.astype(np.float32), sums.stats)
        values |= {
            "load_max_over_mean": float(np.max(balance.max_over_mean_load(stats))),
            "dropped_share": float(np.sum(stats.dropped) / np.sum(stats.load)),
            "devices_per_token": float(np.sum(stats.visits) / np.sum(stats.num_tokens)),
            "overflow_share": float(np.sum(stats.overflowed) / np.sum(stats.visits)),
            "router_entropy": float(np.min(balance.mean_entropy(stats))),
            "unused_experts": int(np.sum(balance.num_unused(stats))),
        }
    return values


def load(sums: RunningSums) -> list[list[int]] | None:
    """Assignments since the last line by layer and expert; None in a dense model."""
    if sums.stats is None:
        return None
    return np.asarray(sums.stats.load).astype(np.int64).tolist()


def to_json(sums: RunningSums) -> dict[str, Any]:
    """The sums as lists and numbers, from which `from_json` makes the same bits."""
    stats = None if sums.stats is None else [np.asarray(value).tolist() for value in sums.stats]
    return sums._replace(stats=None)._asdict() | {"stats": stats}


def from_json(saved: dict[str, Any]) -> RunningSums:
    """The sums that `to_json` gave."""
    sums = RunningSums(**saved)
    if sums.stats is None:
        return sums
    arrays: list[Any] = [np.asarray(value, np.float64) for value in saved["stats"]]
    return sums._replace(stats=balance.RouterStats(*arrays))


def bits_per_byte(*, nats: float, num_bytes: int) -> float:
    """Bits that a model spends on a byte of text: nats / ln 2 / bytes."""
    return nats / math.log(2.0) / num_bytes
