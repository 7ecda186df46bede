"""Full causal attention, forward and all gradients, beside cuDNN and torch on the same device.

Run: python -m benchmarks.attention [--shapes=8x4096x16x4x64] [--out=runs/attention.json]
     python -m benchmarks.attention --shapes=2x48x4x2x16       (a CPU can do these, interpreted)

A shape is rows x length x query heads x key/value heads x width. Ours is measured with one document
a row, and with documents of about 512 tokens; the tiles of `ops/attention.py`, cuDNN (by
`jax.nn.dot_product_attention`) and torch with one document. The peer runs in the same call, in a
Python of its own that has torch (--peer-python; this one by default). Times are medians of rounds
of many calls, with one wait at the end of a round; the backward time is that of the gradients
alone, from what the forward pass saves. TFLOP/s count pairs of tokens that see each other: 4 N H
operations a pair forward and 2.5 times that backward, whatever is computed twice. The error is the
largest relative to float64, of the first and the last key/value head. Memory was filled with NaN
before results were allocated. `benchmarks.attention_tiles` measures the kernels one by one.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console

from benchmarks import measuring, peer
from deepseek_jax.ops import attention
from deepseek_jax.ops.flash import attention as flash
from experiments import numbers

PEER = "benchmarks.torch_attention"
SHAPES = "8x4096x16x4x64,1x8192x16x16x128"
DOCUMENT_TOKENS = 512
# The tiles of `ops/attention.py` are slow, and their side is a setting of the model.
LONGEST_TILED, TILE = 4096, 256


class Shape(NamedTuple):
    """Of one problem."""

    num_rows: int
    length: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


class Inputs(NamedTuple):
    """Queries, keys, values, documents, and the gradient of the answers."""

    query: Any
    key: Any
    value: Any
    document_ids: Any
    d_out: Any


def main() -> None:
    """Measures, prints the table, and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--shapes", default=SHAPES, help="with commas")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has torch")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    shapes = parse_shapes(arguments.shapes)
    dtype = jnp.dtype(arguments.dtype)
    found: dict[str, Any] = {
        "ours": [
            measure(shape, name, attend, dtype, is_packed=is_packed)
            for shape in shapes
            for name, attend, is_packed in subjects(shape, dtype)
        ],
        "made_with": measuring.made_with(dtype),
    }
    request = measuring.request(dtype, shapes=shapes)
    measuring.write(arguments.out, found | {"peer": None})
    found["peer"] = peer.run(PEER, request, python=arguments.peer_python, package="torch")
    report(rich_console.Console(width=130), found)
    measuring.write(arguments.out, found)


def parse_shapes(text: str) -> list[Shape]:
    """Shapes from the command line."""
    return [Shape(*map(int, each.split("x"))) for each in text.split(",")]


def subjects(shape: Shape, dtype: Any) -> list[tuple[str, Callable[..., Any], bool]]:
    """What is measured on this device: name, attention, whether rows hold several documents."""
    is_gpu = jax.default_backend() == "gpu"
    ours = functools.partial(flash.flash_attention, interpret=not is_gpu)
    found: list[tuple[str, Callable[..., Any], bool]] = [
        ("ours", ours, False),
        (f"ours, documents of {DOCUMENT_TOKENS}", ours, True),
    ]
    if shape.length <= LONGEST_TILED:
        block_size = TILE if shape.length % TILE == 0 else shape.length
        tiles = functools.partial(attention.full_attention, block_size=block_size)
        found.append(("tiles", tiles, False))
    if is_gpu and dtype.itemsize == 2:
        found.append(("cuDNN", _cudnn, False))
    return found


def _cudnn(query: Any, key: Any, value: Any, document_ids: Any) -> Any:
    del document_ids  # one document a row
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")


def make_inputs(shape: Shape, dtype: Any, *, is_packed: bool) -> Inputs:
    """Standard normal numbers, and the documents of each row."""
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, d_out = (
        jax.random.normal(each, (shape.num_rows, shape.length, num, shape.head_dim), dtype)
        for each, num in zip(
            keys,
            (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads, shape.num_heads),
            strict=True,
        )
    )
    ids = draw_documents(shape) if is_packed else np.ones((shape.num_rows, shape.length), int)
    return Inputs(query, key, value, jnp.asarray(ids, jnp.int32), d_out)


def draw_documents(shape: Shape) -> np.ndarray:
    """Documents end to end, of half to one and a half times their mean size."""
    generator = np.random.default_rng(0)
    low, high = DOCUMENT_TOKENS // 2, DOCUMENT_TOKENS + DOCUMENT_TOKENS // 2
    rows = []
    for _ in range(shape.num_rows):
        sizes = generator.integers(low, high, endpoint=True, size=-(-shape.length // low))
        rows.append(np.repeat(np.arange(1, len(sizes) + 1), sizes)[: shape.length])
    return np.stack(rows)


def num_pairs(document_ids: Any) -> int:
    """Pairs of a query and a key that it sees, over all rows."""
    sizes = [np.unique(row, return_counts=True)[1] for row in np.asarray(document_ids)]
    return int(sum(np.sum(size * (size + 1) // 2) for size in sizes))


def measure(
    shape: Shape, name: str, attend: Callable[..., Any], dtype: Any, *, is_packed: bool
) -> dict[str, Any]:
    """Seconds and errors of one attention on one problem."""
    inputs = make_inputs(shape, dtype, is_packed=is_packed)
    *arguments, d_out = inputs

    @jax.jit
    def forward(*arguments: Any) -> Any:
        return attend(*arguments)

    @jax.jit
    def saving(query: Any, key: Any, value: Any, document_ids: Any) -> Any:
        return jax.vjp(lambda *qkv: attend(*qkv, document_ids), query, key, value)[1]

    backward = jax.jit(lambda pull, d_out: pull(d_out))
    results = (inputs.query.shape, inputs.key.shape, inputs.value.shape)
    measuring.poison(results, dtype)
    out = forward(*arguments)
    pull = saving(*arguments)
    measuring.poison(results, dtype)
    gradients = backward(pull, d_out)
    return {
        "shape": shape,
        "name": name,
        "num_pairs": num_pairs(inputs.document_ids),
        "forward_seconds": measuring.seconds(lambda: forward(*arguments)),
        "backward_seconds": measuring.seconds(lambda: backward(pull, d_out)),
        "errors": errors(inputs, out, *gradients),
        "all_finite": all(bool(jnp.all(jnp.isfinite(x))) for x in (out, *gradients)),
    }


def errors(inputs: Inputs, *found: Any) -> dict[str, float]:
    """The largest relative errors in the first row's first key/value head and the last's last."""
    worst = {"out": 0.0, "d_query": 0.0, "d_key": 0.0, "d_value": 0.0}
    num_rows, _, num_kv_heads, _ = inputs.key.shape
    for place in {(0, 0), (num_rows - 1, num_kv_heads - 1)}:
        for name, one, other in zip(worst, found, exact(inputs, *place), strict=True):
            mine = _heads(one, inputs, *place)
            error = float(np.linalg.norm(mine - other) / np.linalg.norm(other))
            worst[name] = max(worst[name], error)
    return worst


def exact(inputs: Inputs, row: int, kv_head: int) -> tuple[np.ndarray, ...]:
    """Answers and gradients of one key/value head in float64, [heads, L, H]."""
    (key,), (value,) = (_heads(x, inputs, row, kv_head) for x in (inputs.key, inputs.value))
    ids = np.asarray(inputs.document_ids[row])
    scale = key.shape[1] ** -0.5
    seen = np.tril(ids[:, None] == ids[None, :])
    outs, d_queries = [], []
    d_key, d_value = np.zeros_like(key), np.zeros_like(value)
    queries = _heads(inputs.query, inputs, row, kv_head)
    for query, d_out in zip(queries, _heads(inputs.d_out, inputs, row, kv_head), strict=True):
        weights = np.where(seen, query @ key.T * scale, -np.inf)
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        outs.append(weights @ value)
        d_value += weights.T @ d_out
        weights *= d_out @ value.T - np.sum(d_out * outs[-1], axis=1, keepdims=True)
        d_queries.append(weights @ key * scale)
        d_key += weights.T @ query * scale
    return np.stack(outs), np.stack(d_queries), d_key[None], d_value[None]


def _heads(x: Any, inputs: Inputs, row: int, kv_head: int) -> np.ndarray:
    """The heads of one key/value head, of queries or of keys, in float64 as [heads, L, H]."""
    group = x.shape[2] // inputs.key.shape[2]
    mine = x[row, :, kv_head * group : (kv_head + 1) * group]
    return np.asarray(mine).astype(np.float64).swapaxes(0, 1)


def report(console: rich_console.Console, found: dict[str, Any]) -> None:
    """Prints what `main` measured."""
    made, other = found["made_with"], found["peer"]
    title = f"Causal attention, rows x length x heads x key heads x width, {made['dtype']}"
    columns = ("forward ms", "TFLOP/s", "backward ms", "TFLOP/s", "error")
    table = numbers.table(title, "shape", "of", *columns)
    theirs = [] if other is None else other["measured"]
    for each in [*found["ours"], *theirs]:
        shape = Shape(*each["shape"])
        flops = 4.0 * shape.num_heads * shape.head_dim * each["num_pairs"]
        cells = ["x".join(map(str, shape)), each["name"]]
        for part, share in (("forward", 1.0), ("backward", 2.5)):
            took = each[f"{part}_seconds"]
            cells += [f"{1e3 * took:.3f}", f"{share * flops / took / 1e12:.1f}"]
        table.add_row(*cells, f"{max(each['errors'].values()):.1e}")
    console.print(table)
    wrong = [each["name"] for each in found["ours"] if not each["all_finite"]]
    console.print(
        f"NOT WRITTEN or not finite: {wrong}"
        if wrong
        else "all results are finite, over memory filled with NaN before",
        f"{made['device']}, jax {made['jax']}, Python {made['python']}; "
        + ("no torch there: no peer" if other is None else f"torch {other['torch']}"),
        sep="\n",
        highlight=False,
    )
    for refused in [] if other is None else other["refused"]:
        console.print(refused, highlight=False)


if __name__ == "__main__":
    main()
