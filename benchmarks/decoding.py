"""Seconds a token of a whole model that generates, beside transformers' Qwen3Moe on one device.

Run: python -m benchmarks.decoding --peer-python=PYTHON_THAT_HAS_TORCH_AND_TRANSFORMERS
     python -m benchmarks.decoding --layers=2 --dim=64 --hidden=64 --experts=8 --top-k=2 --heads=4 \
       --kv-heads=2 --head-dim=16 --vocab=500 --block=64 --prompt=64 --batches=1,2

The model is that of `benchmarks.model_step`, the second small enough for a CPU: drawn parameters
in bfloat16, random prompts, greedy on both sides, no end token. Seconds a token are the difference
between many new tokens and few, over their number, so that reading the prompts and whatever comes
once is left out; both are the best of some runs. The peer, in a process of its own that runs
first: `generate` with `grouped_mm`, also with a static cache, which lets transformers compile a
step; "x peer" is the faster of the two over ours. GB/s are all matrices that a step must read
(those of the experts by the expected number of different ones, were all equally likely,
attention's, the head), and the last column is the time that these bytes take at the bandwidth of a
copy, measured in the same run, over the time of a step.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from rich import console as rich_console

from benchmarks import measuring, model_step, peer
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.decoding import generate
from deepseek_jax.nn.model import Decoder
from experiments import numbers

PEER = "benchmarks.torch_decoding"
NOT_HERE = ("batch", "unroll")  # of the sizes of `model_step`
NUM_RUNS = 3
NEVER = -1  # no token: nothing ends


def main() -> None:
    """Measures the peer, then this package, prints the table and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    for name, size in model_step.SIZES.items():
        if name not in NOT_HERE:
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--batches", default="1,8,64", help="sequences at once, with commas")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--few", type=int, default=8, help="new tokens of the shorter runs")
    parser.add_argument("--many", type=int, default=72, help="new tokens of the longer runs")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has torch")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name, size) for name, size in model_step.SIZES.items()}
    request = sizes | {name: getattr(arguments, name) for name in ("prompt", "few", "many")}
    batches = [int(each) for each in arguments.batches.split(",")]
    request |= {"batches": batches, "num_runs": NUM_RUNS}
    theirs = peer.run(PEER, request, python=arguments.peer_python, package="transformers")
    spec = model_step.spec_for(sizes, "auto", "auto", "none")
    params = jax.jit(lambda key: model_step.initial(Decoder(spec), key))(jax.random.key(0))
    found = {
        "ours": [measure(spec, params, request, batch) for batch in batches],
        "peer": theirs,
        "copy_bytes_per_second": measuring.copy_bandwidth(),
        "request": request,
        "made_with": measuring.made_with(jnp.bfloat16),
    }
    report(rich_console.Console(width=130), found)
    measuring.write(arguments.out, found)


def measure(spec: ModelSpec, params: Any, request: dict[str, Any], batch: int) -> dict[str, Any]:
    """Seconds a token of a batch."""
    shape = (batch, request["prompt"])
    prompts = jax.random.randint(jax.random.key(1), shape, 0, spec.vocab_size, jnp.int32)
    lengths = jnp.full(batch, request["prompt"], jnp.int32)

    def best(num_new: int) -> float:
        def run() -> float:
            started = time.perf_counter()
            drawn = generate.generate(
                Decoder(spec),
                {"params": params},
                prompts,
                lengths,
                jax.random.key(2),
                max_new_tokens=num_new,
                temperature=0.0,
                top_p=1.0,
                vocab_size=spec.vocab_size,
                end_id=NEVER,
            )
            jax.block_until_ready(drawn)
            return time.perf_counter() - started

        run()
        return min(run() for _ in range(request["num_runs"]))

    few, many = request["few"], request["many"]
    took = (best(many) - best(few)) / (many - few)
    measuring.say(f"{batch} at once", took)
    return {"batch": batch, "name": "deepseek_jax", "seconds": took}


def bytes_of_a_step(sizes: dict[str, Any], batch: int) -> float:
    """Of the matrices, in bfloat16."""
    num_experts = sizes["experts"]
    num_used = num_experts * (1.0 - (1.0 - sizes["top_k"] / num_experts) ** batch)
    heads = 2 * sizes["heads"] + 2 * sizes["kv_heads"]  # queries, answers; keys, values
    layer = num_used * 3 * sizes["hidden"] + heads * sizes["head_dim"]
    return 2.0 * sizes["dim"] * (sizes["layers"] * layer + sizes["vocab"])


def report(console: rich_console.Console, found: dict[str, Any]) -> None:
    """Prints what `main` measured, with ratios to the peer's faster way."""
    request, other = found["request"], found["peer"]
    table = numbers.table(
        f"Generating, {request['layers']} layers of {request['experts']} experts, prompts of "
        f"{request['prompt']} tokens, bfloat16",
        "sequences",
        "model",
        "ms a token",
        "tokens/s",
        "x peer",
        "GB/s",
        "x bytes' limit",
    )
    theirs = [] if other is None else other["measured"]
    for each in [*found["ours"], *theirs]:
        batch, took = each["batch"], each["seconds"]
        fastest = [its["seconds"] for its in theirs if its["batch"] == batch]
        speed = bytes_of_a_step(request, batch) / took
        table.add_row(
            str(batch),
            each["name"],
            f"{1e3 * took:.3f}",
            f"{batch / took:,.0f}",
            f"{min(fastest) / took:.1f}" if fastest and each not in theirs else "",
            f"{speed / 1e9:,.0f}",
            f"{speed / found['copy_bytes_per_second']:.2f}",
        )
    console.print(table)
    console.print(measuring.told_beside_transformers(found), highlight=False)


if __name__ == "__main__":
    main()
