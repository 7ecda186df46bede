"""A preset's model with each way to compute its experts, against the first of them.

Run: python -m benchmarks.preset_experts --config=experiments/configs/laptop.py \
       --rows=8 --length=256
     python -m benchmarks.preset_experts --config=experiments/configs/r1_12b.py --layers=2 \
       --ways=capacity,auto --rows=8 --length=8192 --sequences=0

A way is a value of `model.expert_kernel`, or "capacity" with a factor of 1.25. A step is the
next-token loss of random tokens, a document a row, with the balancing loss, and its gradient by
every parameter; no optimizer. Parameters are float32, as runs have them, and float32 matmuls
outside of kernels are JAX's default: TF32 on recent NVIDIA GPUs. Seconds are medians of steps with
a wait behind each; memory is what the compiled step needs, parameters and gradients included.
Generating is greedy, from prompts of a block of random tokens, its seconds a token measured as in
`benchmarks.decoding`; what generates is dropless, so a capacity has no figure there.
"""

import argparse
import dataclasses
import pathlib
import statistics
from typing import Any

import jax
from rich import console as rich_console

from benchmarks import decoding, measuring, model_step
from deepseek_jax.core import config as core_config
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.nn.model import Decoder
from experiments import numbers, presets, settings

CAPACITY = "capacity"
FACTOR = presets.CAPACITY["model.capacity_factor"]


def main() -> None:
    """Measures each way, prints the table and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="file, or file:variant")
    parser.add_argument("--ways", default="loop,auto,capacity", help="with commas")
    parser.add_argument("--rows", type=int, required=True, help="of a step")
    parser.add_argument("--length", type=int, required=True, help="tokens of a row")
    parser.add_argument("--layers", type=int, default=0, help="0: as many as the preset has")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--sequences", type=int, default=64, help="generated at once; 0: none")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    spec = load(arguments.config, num_layers=arguments.layers)
    request = {"batch": arguments.rows, "length": arguments.length, "warmup": 3}
    request |= {"steps": arguments.steps, "prompt": spec.block_size, "few": 8, "many": 40}
    request["num_runs"] = decoding.NUM_RUNS
    found = {
        "ways": [
            measure(way, with_way(spec, way), request, num_sequences=arguments.sequences)
            for way in arguments.ways.split(",")
        ],
        "config": arguments.config,
        "request": request | {"sequences": arguments.sequences},
        "made_with": measuring.made_with(spec.compute_dtype),
    }
    report(rich_console.Console(width=140), found, spec)
    measuring.write(arguments.out, found)


def load(name: str, *, num_layers: int) -> ModelSpec:
    """The model of a config file; with its own number of layers if that is 0.

    Raises:
      ValueError: the model is dense.
    """
    values = settings.load_config(name).model.to_dict()
    values |= {"num_layers": num_layers} if num_layers else {}
    spec = core_config.from_config(ModelSpec, values, where="model")
    if spec.is_dense:
        raise ValueError(f"--config={name}: must be of a sparse model; a dense one has no experts")
    return spec


def with_way(spec: ModelSpec, way: str) -> ModelSpec:
    """The same model, whose experts are computed that way."""
    if way == CAPACITY:
        return dataclasses.replace(spec, dispatch="capacity", capacity_factor=FACTOR)
    kernel: Any = way
    return dataclasses.replace(spec, dispatch="dropless", capacity_factor=0.0, expert_kernel=kernel)


def measure(
    way: str, spec: ModelSpec, request: dict[str, Any], *, num_sequences: int
) -> dict[str, Any]:
    """Of a step and of generating."""
    found = model_step.measure(spec, request, draw=model_step.in_float32)
    measuring.say(way, statistics.median(found["seconds"]))
    generating = None
    if num_sequences and spec.dispatch == "dropless":
        params = jax.jit(lambda key: model_step.in_float32(Decoder(spec), key))(jax.random.key(0))
        generating = decoding.measure(spec, params, request, num_sequences)["seconds"]
    return found | {"name": way, "generating_seconds": generating}


def report(console: rich_console.Console, found: dict[str, Any], spec: ModelSpec) -> None:
    """Prints what `main` measured, with ratios to the first way."""
    request, made, ways = found["request"], found["made_with"], found["ways"]
    table = numbers.table(
        f"{found['config']}, {spec.num_layers} layers of {spec.num_experts} experts "
        f"{spec.model_dim} x {spec.expert_hidden_dim}, {request['batch']} x {request['length']} "
        f"tokens, {spec.compute_dtype}",
        "experts",
        "ms a step",
        "tokens/s",
        "x the first's",
        "memory",
        "loss",
        "gradient's norm",
        "ms a token generated",
        "first's over its",
    )
    first = ways[0]
    for each in ways:
        took, its = statistics.median(each["seconds"]), statistics.median(first["seconds"])
        drawn, others = each["generating_seconds"], first["generating_seconds"]
        table.add_row(
            each["name"],
            f"{1e3 * took:.2f}",
            f"{request['batch'] * request['length'] / took:,.0f}",
            f"{its / took:.2f}",
            f"{each['peak_bytes'] / 1e9:.2f} GB",
            f"{each['loss']:.4f}",
            f"{each['gradient_norm']:.4f}",
            "" if drawn is None else f"{1e3 * drawn:.3f}",
            "" if drawn is None or others is None else f"{others / drawn:.2f}",
        )
    console.print(table)
    console.print(
        f"generating {request['sequences']} sequences; {made['device']}, jax {made['jax']}, Python "
        f"{made['python']}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
