"""Time of one MoE layer on CPU as experts grow and top-k stays. Floor: knows deepseek_jax.

Run:    JAX_PLATFORMS=cpu python -m benchmarks.moe_layer_cpu [--json PATH]

The layer is route, dispatch, experts, combine, dropless, forward alone and forward with all
gradients. Beside it stand a dense SwiGLU of the same active FLOPs (on K times the tokens) and
the same layer over `jax.lax.ragged_dot`. A second table times the layer at each block size:
`ops.grouped_swiglu.block_rows_for` was chosen from it. Times are medians of rounds in which
the candidates take turns, so that other work on the machine meets all of them alike.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from deepseek_jax.ops import dispatch, experts, grouped_swiglu, routing

NUM_TOKENS = 2048
MODEL_DIM = 128
HIDDEN_DIM = 128
TOP_K = 4
EXPERT_COUNTS = (8, 32, 128)
BLOCK_ROWS = (16, 32, 64, 128, 256, 512, 1024)
NUM_ROUNDS = 5
NUM_RAGGED_ROUNDS = 1

Params = tuple[Array, experts.ExpertWeights]
Layer = Callable[[Params, Array], Array]


def make_params(key: Array, num_experts: int) -> Params:
    """A gate [D, E] and the weights of the experts."""
    gate_key, *keys = jax.random.split(key, 4)
    inner = (num_experts, MODEL_DIM, HIDDEN_DIM)
    shapes = (inner, inner, (num_experts, HIDDEN_DIM, MODEL_DIM))
    matrices = [0.1 * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]
    gate = 0.1 * jax.random.normal(gate_key, (MODEL_DIM, num_experts))
    return gate, experts.ExpertWeights(*matrices)


def route(gate: Array, x: Array) -> routing.Routing:
    """The routing of the layer: softmax, top-k, renormalized."""
    scores = routing.router_scores(x @ gate, kind="softmax")
    return routing.top_k_routing(scores, top_k=TOP_K, renormalize=True)


def block_layer(params: Params, x: Array, *, block_rows: int) -> Array:
    """The layer as the model has it."""
    gate, weights = params
    chosen = route(gate, x)
    plan = dispatch.dropless_plan(
        chosen.expert_ids,
        jnp.ones(x.shape[0], bool),
        num_experts=gate.shape[1],
        block_rows=block_rows,
    )
    rows = dispatch.dispatch(x, plan)
    rows = experts.swiglu_dropless(rows, weights, plan.group_sizes, block_rows=block_rows)
    return dispatch.combine(rows, chosen.weights, plan)


def ragged_layer(params: Params, x: Array) -> Array:
    """The same layer with `jax.lax.ragged_dot` for the experts."""
    gate, weights = params
    chosen = route(gate, x)
    plan = dispatch.dropless_plan(
        chosen.expert_ids, jnp.ones(x.shape[0], bool), num_experts=gate.shape[1], block_rows=1
    )
    rows = dispatch.dispatch(x, plan)
    matmul = functools.partial(jax.lax.ragged_dot, group_sizes=plan.group_sizes)
    hidden = jax.nn.silu(matmul(rows, weights.gate)) * matmul(rows, weights.up)
    return dispatch.combine(matmul(hidden, weights.down), chosen.weights, plan)


def dense_layer(params: Params, x: Array) -> Array:
    """A dense SwiGLU with the FLOPs of the experts: one expert on K copies of the tokens."""
    _, weights = params
    gate, up, down = (matrices[0] for matrices in weights)
    return experts.swiglu_dense(jnp.tile(x, (TOP_K, 1)), gate, up, down)


def calls(layer: Layer, params: Params, x: Array) -> dict[str, Callable[[], Any]]:
    """The compiled layer alone, and with the gradients of its parameters and input."""

    def loss(params: Params, x: Array) -> Array:
        return jnp.sum(jnp.square(layer(params, x)))

    forward = jax.jit(layer).lower(params, x).compile()
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, x).compile()
    return {"forward": lambda: forward(params, x), "both": lambda: both(params, x)}


def median_ms(candidates: dict[Any, Callable[[], Any]], num_rounds: int) -> dict[Any, float]:
    """Median milliseconds of each candidate; they take turns in every round."""
    seconds: dict[Any, list[float]] = {name: [] for name in candidates}
    for _ in range(num_rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def time_layers(params: dict[int, Params], x: Array) -> list[dict[str, Any]]:
    """One record for each number of experts: milliseconds and ratios."""
    candidates: dict[tuple[int | str, str], Callable[[], Any]] = {}
    ragged: dict[tuple[int | str, str], Callable[[], Any]] = {}
    for kind, call in calls(dense_layer, params[EXPERT_COUNTS[0]], x).items():
        candidates["dense", kind] = call
    for num_experts, values in params.items():
        block_rows = grouped_swiglu.block_rows_for(NUM_TOKENS * TOP_K, num_experts)
        layer = functools.partial(block_layer, block_rows=block_rows)
        for kind, call in calls(layer, values, x).items():
            candidates[num_experts, kind] = call
        for kind, call in calls(ragged_layer, values, x).items():
            ragged[num_experts, kind] = call
    times = median_ms(candidates, NUM_ROUNDS)
    ragged_times = median_ms(ragged, NUM_RAGGED_ROUNDS)
    records = []
    for num_experts in params:
        record: dict[str, Any] = {
            "num_experts": num_experts,
            "block_rows": grouped_swiglu.block_rows_for(NUM_TOKENS * TOP_K, num_experts),
        }
        for kind in ("forward", "both"):
            mine = times[num_experts, kind]
            record[kind] = {
                "layer_ms": mine,
                "dense_ms": times["dense", kind],
                "ragged_dot_ms": ragged_times[num_experts, kind],
                "ratio_to_fewest_experts": mine / times[EXPERT_COUNTS[0], kind],
                "ratio_to_dense": mine / times["dense", kind],
                "ragged_dot_ratio_to_dense": ragged_times[num_experts, kind] / times["dense", kind],
            }
        records.append(record)
    return records


def time_blocks(params: dict[int, Params], x: Array) -> list[dict[str, Any]]:
    """Milliseconds of forward and gradients at each number of experts and block size."""
    candidates = {}
    for num_experts, values in params.items():
        for block_rows in BLOCK_ROWS:
            layer = functools.partial(block_layer, block_rows=block_rows)
            candidates[num_experts, block_rows] = calls(layer, values, x)["both"]
    times = median_ms(candidates, NUM_ROUNDS)
    return [
        {"num_experts": num_experts, "block_rows": block_rows, "both_ms": value}
        for (num_experts, block_rows), value in times.items()
    ]


def print_tables(layers: list[dict[str, Any]], blocks: list[dict[str, Any]]) -> None:
    """Prints what `main` measured."""
    print(f"{NUM_TOKENS} tokens, top-{TOP_K}, D={MODEL_DIM}, F={HIDDEN_DIM}, float32; ms\n")
    header = f"{'':8} {'E':>4} {'layer':>8} {'x E=8':>6} {'dense':>8} {'x dense':>8}"
    print(f"{header} {'ragged_dot':>11} {'x dense':>8}")
    for kind in ("forward", "both"):
        for record in layers:
            row = record[kind]
            print(
                f"{kind:8} {record['num_experts']:4} {row['layer_ms']:8.1f}"
                f" {row['ratio_to_fewest_experts']:6.2f} {row['dense_ms']:8.1f}"
                f" {row['ratio_to_dense']:8.2f} {row['ragged_dot_ms']:11.1f}"
                f" {row['ragged_dot_ratio_to_dense']:8.1f}"
            )
    print("\nforward and gradients by block_rows (* = block_rows_for)")
    print(f"{'E':>4} " + " ".join(f"{block_rows:>8}" for block_rows in BLOCK_ROWS))
    for record in layers:
        cells = [
            f"{row['both_ms']:7.1f}{'*' if row['block_rows'] == record['block_rows'] else ' '}"
            for row in blocks
            if row["num_experts"] == record["num_experts"]
        ]
        print(f"{record['num_experts']:4} " + " ".join(cells))


def main() -> None:
    """Measures, prints the tables, and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    x = jax.random.normal(jax.random.key(1), (NUM_TOKENS, MODEL_DIM))
    params = {count: make_params(jax.random.key(0), count) for count in EXPERT_COUNTS}
    layers, blocks = time_layers(params, x), time_blocks(params, x)
    print_tables(layers, blocks)
    if arguments.json is not None:
        record = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "num_cores": os.cpu_count(),
            "num_tokens": NUM_TOKENS,
            "top_k": TOP_K,
            "model_dim": MODEL_DIM,
            "expert_hidden_dim": HIDDEN_DIM,
            "layers": layers,
            "blocks": blocks,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
