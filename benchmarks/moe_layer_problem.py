"""Routings of `benchmarks.moe_layer` and the errors of who computed them; numpy only.

Both sides import it, the peer in a Python that has neither jax nor deepseek_jax. Axes: T tokens,
K experts of a token, E experts, D model, F expert hidden.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NUM_TOKENS_CHECKED = 8


class Shape(NamedTuple):
    """Of one layer."""

    num_tokens: int
    top_k: int
    num_experts: int
    model_dim: int
    width: int

    @property
    def name(self) -> str:
        """As `--shapes` has it."""
        return "x".join(map(str, self))

    @property
    def training_flops(self) -> float:
        """Operations forward and backward: 18 D F a row."""
        return 18.0 * self.num_tokens * self.top_k * self.model_dim * self.width


class Layer(NamedTuple):
    """One side's arrays, each read as float64 at some indices of its first axis.

    `tokens`, `out`, `d_out`, `d_tokens` give [.., D], `d_weights` [.., K]; `matrices` and
    `d_matrices` give gate [D, F], up [D, F] and down [F, D] of one expert.
    """

    tokens: Callable[[Any], Any]
    out: Callable[[Any], Any]
    d_out: Callable[[Any], Any]
    d_tokens: Callable[[Any], Any]
    d_weights: Callable[[Any], Any]
    matrices: Callable[[int], tuple[Any, Any, Any]]
    d_matrices: Callable[[int], tuple[Any, Any, Any]]


def draw_routing(shape: Shape, kind: str, seed: int = 0) -> tuple[Any, Any]:
    """Expert ids [T, K] int32, distinct in a row, and weights [T, K] float32 exact in bfloat16.

    Shares of the experts are equal ("even"), or drawn from a Dirichlet distribution with
    parameter 2 ("skewed").
    """
    generator = np.random.default_rng(seed)
    shares = {
        "even": np.full(shape.num_experts, 1.0 / shape.num_experts),
        "skewed": generator.dirichlet(np.full(shape.num_experts, 2.0)),
    }[kind]
    # The largest of Gumbel noise and log shares are a draw without replacement.
    noise = generator.gumbel(size=(shape.num_tokens, shape.num_experts))
    ids = np.argsort(-(noise + np.log(shares)), axis=1)[:, : shape.top_k].astype(np.int32)
    weights = generator.uniform(0.5, 1.5, ids.shape) / shape.top_k
    bits = weights.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return ids, bits.view(np.float32)


def errors(ids: Any, weights: Any, layer: Layer) -> dict[str, float]:
    """The largest relative error of some tokens and of the least and most used experts."""
    worst = dict.fromkeys(("out", "d_tokens", "d_weights", "d_gate", "d_up", "d_down"), 0.0)

    def note(name: str, found: Any, wanted: Any) -> None:
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        worst[name] = max(worst[name], float(error))

    some = np.unique(np.linspace(0, len(ids) - 1, NUM_TOKENS_CHECKED).astype(int))
    for token, found, found_d, found_weights in zip(
        some, layer.out(some), layer.d_tokens(some), layer.d_weights(some), strict=True
    ):
        x, d_out = layer.tokens([token])[0], layer.d_out([token])[0]
        each = [_one(x, d_out, *layer.matrices(int(expert))) for expert in ids[token]]
        mine = np.asarray(weights[token], np.float64)
        note("out", found, sum(w * one.answer for w, one in zip(mine, each, strict=True)))
        note("d_tokens", found_d, sum(w * one.d_x for w, one in zip(mine, each, strict=True)))
        note("d_weights", found_weights, np.array([one.answer @ d_out for one in each]))
    load = np.bincount(ids.ravel(), minlength=ids.max() + 1)
    used = np.flatnonzero(load)
    for expert in {int(used[np.argmin(load[used])]), int(np.argmax(load))}:
        of_tokens, of_choices = np.nonzero(ids == expert)
        one = _one(layer.tokens(of_tokens), layer.d_out(of_tokens), *layer.matrices(expert))
        share = np.asarray(weights[of_tokens, of_choices], np.float64)[:, None]
        x, d_out = layer.tokens(of_tokens), layer.d_out(of_tokens)
        wanted = (
            x.T @ (share * one.d_gate),
            x.T @ (share * one.d_up),
            one.hidden.T @ (share * d_out),
        )
        names = ("d_gate", "d_up", "d_down")
        for name, found, want in zip(names, layer.d_matrices(expert), wanted, strict=True):
            note(name, found, want)
    return worst


def answers_error(
    ids: Any,
    weights: Any,
    *,
    tokens: Any,
    answers: Any,
    matrices: Callable[[int], tuple[Any, Any, Any]],
) -> float:
    """The relative error of all answers [T, D] to tokens [T, D], both float64."""
    wanted = np.zeros_like(answers)
    for expert in np.unique(ids):
        gate, up, down = matrices(int(expert))
        of_tokens, of_choices = np.nonzero(ids == expert)
        x = tokens[of_tokens]
        share = np.asarray(weights[of_tokens, of_choices], np.float64)[:, None]
        wanted[of_tokens] += share * _one(x, np.zeros_like(x), gate, up, down).answer
    return float(np.linalg.norm(answers - wanted) / np.linalg.norm(wanted))


class _One(NamedTuple):
    """An expert's answer to a token or tokens, and gradients, all without the weight."""

    answer: Any
    hidden: Any
    d_gate: Any
    d_up: Any
    d_x: Any


def _one(x: Any, d_out: Any, gate: Any, up: Any, down: Any) -> _One:
    g, u = x @ gate, x @ up
    share = 1.0 / (1.0 + np.exp(-g))
    hidden, d_hidden = g * share * u, d_out @ down.T
    d_gate = d_hidden * u * share * (1.0 + g * (1.0 - share))
    d_up = d_hidden * g * share
    return _One(hidden @ down, hidden, d_gate, d_up, d_gate @ gate.T + d_up @ up.T)
