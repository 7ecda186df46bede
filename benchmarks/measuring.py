"""What benchmarks of kernels share: time, memory, what they tell a peer, a file of figures."""

import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NUM_ROUNDS, SECONDS_A_ROUND = 5, 0.05


def seconds(call: Callable[[], Any]) -> float:
    """Median seconds of a call, over rounds with one wait at the end."""
    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    num = max(1, round(SECONDS_A_ROUND / (time.perf_counter() - start)))
    rounds = []
    for _ in range(NUM_ROUNDS):
        start = time.perf_counter()
        for _ in range(num):
            last = call()
        jax.block_until_ready(last)
        rounds.append((time.perf_counter() - start) / num)
    return statistics.median(rounds)


def poison(shapes: tuple[tuple[int, ...], ...], dtype: Any) -> None:
    """Fills memory for two of each result with NaN and gives it back, for the next to lie in."""
    jax.block_until_ready([jnp.full(shape, jnp.nan, dtype) for shape in shapes * 2])


def copy_bandwidth() -> float:
    """Bytes read and written in a second by a large copy."""
    size = 2**29 if jax.default_backend() == "gpu" else 2**24
    array = jnp.zeros(size, jnp.float32)
    copied = jax.jit(lambda x: x + 1.0)
    return 2 * array.nbytes / seconds(lambda: copied(array))


def made_with(dtype: Any) -> dict[str, str]:
    """What figures are of."""
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "dtype": jnp.dtype(dtype).name,
    }


def request(dtype: Any, **what: Any) -> dict[str, Any]:
    """What a peer is asked for: the same device, dtype and rounds."""
    return {
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
        "dtype": jnp.dtype(dtype).name,
        "num_rounds": NUM_ROUNDS,
        "seconds_a_round": SECONDS_A_ROUND,
        **what,
    }


def say(name: str, took: float) -> None:
    """One line on stderr for whoever waits for the tables: what was measured just now."""
    print(f"{name}: {1e3 * took:.3f} ms", file=sys.stderr, flush=True)


def told_beside_transformers(found: dict[str, Any]) -> str:
    """One line under a table: a copy's bandwidth, the device, and the versions of both sides."""
    made, other = found["made_with"], found["peer"]
    versions = "no transformers there: no peer"
    if other is not None:
        versions = f"torch {other['torch']}, transformers {other['transformers']}"
    return (
        f"copy: {found['copy_bytes_per_second'] / 1e9:,.0f} GB/s; {made['device']}, jax "
        f"{made['jax']}, Python {made['python']}; {versions}"
    )


def write(path: pathlib.Path | None, found: dict[str, Any]) -> None:
    """Writes the figures as JSON, if a file is named."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
