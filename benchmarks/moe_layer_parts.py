"""The parts of a layer of experts, each a program of its own, for `benchmarks.moe_layer`.

Fused kernels, where a backend has them, stand beside the parts that each of them is instead of.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measuring
from benchmarks.moe_layer_problem import Shape
from deepseek_jax.ops import dispatch
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.grouped import matmul, swiglu
from deepseek_jax.ops.grouped.hopper import gated, gated_back, product
from experiments import numbers


class Arguments(NamedTuple):
    """Of the layer, and the gradient of its answers."""

    tokens: Any
    weights: Any
    matrices: ExpertWeights
    ids: Any
    d_out: Any


class Part(NamedTuple):
    """One program: how often a forward and backward pass has it, its bytes or operations.

    `instead_of`: a fused kernel's, the names of the parts that it stands for.
    """

    name: str
    times: int
    call: Callable[[], Any]
    num_bytes: float
    flops: float
    instead_of: tuple[str, ...] = ()


def measure(shape: Shape, made: Arguments, backend: Any) -> list[dict[str, Any]]:
    """Seconds of each part."""
    measured = []
    for part in parts_of(shape, made, backend):
        took = measuring.seconds(part.call)
        measuring.say(part.name, took)
        measured.append(
            {
                "name": part.name,
                "times": part.times,
                "seconds": took,
                "num_bytes": part.num_bytes,
                "flops": part.flops,
                "instead_of": part.instead_of,
            }
        )
    return measured


def _compiled(function: Any, *arrays: Any) -> tuple[Any, Callable[[], Any]]:
    """What it returns, and a call."""
    program = jax.jit(function)
    return program(*arrays), lambda: program(*arrays)


def parts_of(shape: Shape, made: Arguments, backend: Any) -> list[Part]:
    """The programs, on arrays that the ones before them made; fused kernels last."""
    plan_of = functools.partial(dispatch.dropless_plan, num_experts=shape.num_experts, block_rows=1)
    how: dict[str, Any] = {"backend": backend, "interpret": False}
    mask = jnp.ones(shape.num_tokens, bool)
    plan, make_plan = _compiled(plan_of, made.ids, mask)
    sizes = plan.group_sizes
    gate, up, down = made.matrices
    rows, gather = _compiled(functools.partial(swiglu.rows_of, **how), made.tokens, plan)
    gates, enter = _compiled(functools.partial(matmul.product, **how), rows, gate, sizes)
    ups = matmul.product(rows, up, sizes, **how)
    weights = dispatch.row_weights(made.weights, plan)
    hidden, gated_once = _compiled(swiglu.weighted_hidden, gates, ups, weights)
    answers, leave = _compiled(functools.partial(matmul.product, **how), hidden, down, sizes)
    _, combine = _compiled(_summed, plan.row_ids, answers)
    back = functools.partial(matmul.product, **how, transposed=True)
    d_rows = swiglu.rows_of(made.d_out, plan, **how)
    d_hidden, through = _compiled(back, d_rows, down, sizes)
    pulled, pull = _compiled(swiglu.gradients, gates, ups, weights, d_hidden)
    d_x, enter_back = _compiled(back, pulled.d_gates, gate, sizes)
    _, combine_two = _compiled(_summed, plan.row_ids, d_x, d_x)
    outer = functools.partial(matmul.outer, **how)
    _, of_matrix = _compiled(outer, rows, pulled.d_gates, sizes)
    _, of_down = _compiled(outer, hidden, d_rows, sizes)
    size = made.tokens.dtype.itemsize
    small, large = (float(size * rows.shape[0] * side) for side in (shape.model_dim, shape.width))
    few = float(size * shape.num_tokens * shape.model_dim)
    flops = 2.0 * rows.shape[0] * shape.model_dim * shape.width
    parts = [
        Part("plan", 1, make_plan, 0.0, 0.0),
        Part("gather rows of tokens, of gradients", 2, gather, few + small, 0.0),
        Part("gate, up", 2, enter, 0.0, flops),
        Part("hidden layer", 1, gated_once, 3 * large, 0.0),
        Part("down", 1, leave, 0.0, flops),
        Part("combine answers", 1, combine, few + small, 0.0),
        Part("gradient of the hidden layer", 1, through, 0.0, flops),
        Part("gradients of gate, up and weights", 1, pull, 5 * large, 0.0),
        Part("gradient of rows", 2, enter_back, 0.0, flops),
        Part("combine both gradients of rows", 1, combine_two, few + 2 * small, 0.0),
        Part("gradient of gate's matrices, of up's", 2, of_matrix, 0.0, flops),
        Part("gradient of down's matrices", 1, of_down, 0.0, flops),
    ]
    if backend not in swiglu.FUSED:
        return parts
    alone = functools.partial(gated.gated, interpret=False)
    forward = (rows, weights, gate, up, sizes)
    _, keeping = _compiled(functools.partial(alone, keep=True), *forward)
    _, forgetting = _compiled(functools.partial(alone, keep=False), *forward)
    through_all = functools.partial(gated_back.gated_back, interpret=False)
    _, pull_all = _compiled(through_all, d_rows, weights, gates, ups, down, sizes)
    sum_back = functools.partial(product.sum_of_products, transposed=True, interpret=False)
    _, enter_both = _compiled(sum_back, (pulled.d_gates, pulled.d_ups), (gate, up), sizes)
    _, combine_one = _compiled(_summed, plan.row_ids, d_x)
    into, back_through = ("gate, up", "hidden layer"), "gradients of gate, up and weights"
    return [
        *parts,
        Part("hidden layer, gates and ups kept", 1, keeping, small + 3 * large, 2 * flops, into),
        Part("hidden layer alone", 0, forgetting, small + large, 2 * flops, into),
        Part(
            "gradients of the hidden layer and of its parts",
            1,
            pull_all,
            small + 4 * large,
            flops,
            ("gradient of the hidden layer", back_through),
        ),
        Part("sum of rows' gradients", 1, enter_both, 0.0, 2 * flops, ("gradient of rows",)),
        Part(
            "combine gradients of rows",
            1,
            combine_one,
            few + small,
            0.0,
            ("combine both gradients of rows",),
        ),
    ]


def _summed(row_ids: Any, *rows: Any) -> Any:
    return dispatch.summed_rows(*rows, row_ids=row_ids)


def tables(each: dict[str, Any]) -> list[Any]:
    """Of what `measure` returned for a problem and a backend: all parts, then fused kernels."""
    problem = each["problem"]
    name = f"{Shape(*problem['shape']).name}, {problem['routing']}, {each['backend']}"
    fused = [part for part in each["parts"] if part["instead_of"]]
    apart = [part for part in each["parts"] if not part["instead_of"]]
    return [_apart_table(name, apart), *([_fused_table(name, fused, apart)] if fused else [])]


def _apart_table(name: str, parts: list[dict[str, Any]]) -> Any:
    table = numbers.table(f"Parts, {name}", "part", "times", "ms each", "ms all", "GB/s", "TFLOP/s")
    for part in parts:
        took = part["seconds"]
        spent = f"{1e3 * took * part['times']:.3f}"
        table.add_row(part["name"], str(part["times"]), f"{1e3 * took:.3f}", spent, *_rates(part))
    totals = {
        "matmuls": sum(part["seconds"] * part["times"] for part in parts if part["flops"]),
        "all else": sum(part["seconds"] * part["times"] for part in parts if not part["flops"]),
    }
    table.add_section()
    for total, took in totals.items():
        table.add_row(total, "", "", f"{1e3 * took:.3f}", "", "")
    return table


def _fused_table(name: str, fused: list[dict[str, Any]], apart: list[dict[str, Any]]) -> Any:
    table = numbers.table(
        f"Fused kernels, {name}", "kernel", "ms", "GB/s", "TFLOP/s", "ms apart", "x apart"
    )
    saved = 0.0
    for part in fused:
        took = part["seconds"]
        before = sum(
            each["seconds"] * each["times"] for each in apart if each["name"] in part["instead_of"]
        )
        saved += part["times"] * (before - took)
        cells = (f"{1e3 * before:.3f}", f"{before / took:.2f}")
        table.add_row(part["name"], f"{1e3 * took:.3f}", *_rates(part), *cells)
    table.add_section()
    table.add_row("saved in a forward and backward pass", f"{1e3 * saved:.3f}", "", "", "", "")
    return table


def _rates(part: dict[str, Any]) -> tuple[str, str]:
    """Bytes and operations in a second, where they mean something."""
    took = part["seconds"]
    moved = f"{part['num_bytes'] / took / 1e9:,.0f}" if part["num_bytes"] else ""
    return moved, f"{part['flops'] / took / 1e12:.1f}" if part["flops"] else ""
