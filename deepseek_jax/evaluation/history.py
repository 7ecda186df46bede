"""A run's past, as its metrics tell it: what the curves are drawn from. Floor 5."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64


class Curve(NamedTuple):
    """A quantity over the steps of a run."""

    steps: Int64[np.ndarray, " points"]
    values: Float64[np.ndarray, " points"]


class RouterCurves(NamedTuple):
    """The router's health while training, each point over the steps since the last.

    Attributes:
      load_max_over_mean: load of the busiest expert over the mean, of the worst layer.
      entropy: of the router's probabilities in nats, of the worst layer.
      dropped_share: dropped assignments over all, of all layers.
      unused_experts: experts that no token chose, over all layers.
    """

    load_max_over_mean: Curve
    entropy: Curve
    dropped_share: Curve
    unused_experts: Curve


class History(NamedTuple):
    """What the metrics say.

    Attributes:
      train: loss in bits per byte.
      heldout: held-out loss in bits per byte, on the rows that training measures.
      router: None in a dense model.
    """

    train: Curve
    heldout: Curve
    router: RouterCurves | None


def from_records(records: Sequence[Mapping[str, Any]], *, train_bytes_per_target: float) -> History:
    """The curves of the lines of `metrics.jsonl`.

    Args:
      records: in the order of the file; a line has `loss` (nats) or `heldout_bits_per_byte`.
      train_bytes_per_target: bytes of the training text over its targets.

    Raises:
      ValueError: no line with a loss.
      KeyError: a line of a sparse model that lacks a quantity of the router.
    """
    train_lines = [record for record in records if "loss" in record]
    if not train_lines:
        raise ValueError(f"none of {len(records)} lines of metrics has a loss")
    heldout_lines = [record for record in records if "heldout_bits_per_byte" in record]
    losses = _curve(train_lines, "loss")
    router = None
    if "load_max_over_mean" in train_lines[0]:
        router = RouterCurves(
            load_max_over_mean=_curve(train_lines, "load_max_over_mean"),
            entropy=_curve(train_lines, "router_entropy"),
            dropped_share=_curve(train_lines, "dropped_share"),
            unused_experts=_curve(train_lines, "unused_experts"),
        )
    return History(
        train=Curve(losses.steps, losses.values / (math.log(2.0) * train_bytes_per_target)),
        heldout=_curve(heldout_lines, "heldout_bits_per_byte"),
        router=router,
    )


def policy_curve(records: Sequence[Mapping[str, Any]], name: str) -> Curve:
    """One quantity over the iterations of reinforcement.

    Args:
      records: in order; a record has its number as `iteration` or `step`.
      name: of the quantity; a record that lacks it, or has None, did not measure it.

    Returns:
      A point for each record that measured it.

    Raises:
      KeyError: a record with the quantity and without a number.
    """
    lines = [record for record in records if name in record and record[name] is not None]
    numbers = [line["iteration"] if "iteration" in line else line["step"] for line in lines]
    return Curve(np.array(numbers, np.int64), np.array([line[name] for line in lines], np.float64))


def _curve(records: Sequence[Mapping[str, Any]], name: str) -> Curve:
    """One quantity of the lines."""
    return Curve(
        np.array([record["step"] for record in records], np.int64),
        np.array([record[name] for record in records], np.float64),
    )
