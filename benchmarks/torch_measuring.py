"""What peers on torch share: time, and how they are asked. Imports neither jax nor deepseek_jax."""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def seconds(call: Callable[[], Any], request: dict[str, Any]) -> float:
    """Median seconds of a call, over rounds with one wait at the end."""

    def wait() -> None:
        if request["device"] == "cuda":
            torch.cuda.synchronize()

    call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    num = max(1, round(request["seconds_a_round"] / (time.perf_counter() - start)))
    rounds = []
    for _ in range(request["num_rounds"]):
        start = time.perf_counter()
        for _ in range(num):
            call()
        wait()
        rounds.append((time.perf_counter() - start) / num)
    return statistics.median(rounds)


def answer(measured: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Reads the JSON request of the first argument and writes what comes of it to the second."""
    request_path, result_path = map(pathlib.Path, sys.argv[1:])
    request = json.loads(request_path.read_text())
    torch.manual_seed(0)
    result_path.write_text(json.dumps(measured(request) | {"torch": torch.__version__}))
