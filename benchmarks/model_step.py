"""Forward and backward of a whole model, beside transformers' Qwen3Moe on the same device.

Run: python -m benchmarks.model_step --peer-python=PYTHON_THAT_HAS_TORCH_AND_TRANSFORMERS
     python -m benchmarks.model_step --layers=2 --dim=64 --hidden=64 --experts=8 --top-k=2 \
       --heads=4 --kv-heads=2 --head-dim=16 --vocab=500 --batch=2 --length=128 --block=64

The second is small enough for a CPU. Both have random tokens, one document a row, full causal
attention, a softmax over all experts renormalised over the chosen, and parameters and gradients
in bfloat16; gradients are written to memory, and no optimizer uses them. Here the norms' scales
and the router's matrix stay float32, and there is a balancing loss, which the peer is spared.
Seconds are medians of steps with a wait behind each. The peer runs first, in a process of its
own, and has given its memory back when JAX takes it. The share of the peak counts active
parameters and causal attention (`deepseek_jax/core/accounting.py`), three passes, nothing for
recomputation.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich import console as rich_console

from benchmarks import peer
from deepseek_jax.core import accounting
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.training import nats, progress
from experiments import numbers

PEER = "benchmarks.torch_model_step"
WAYS = "grouped_mm, compiled"
BALANCE_WEIGHT = 0.001
SIZES = {
    "layers": 4,
    "dim": 1024,
    "heads": 16,
    "kv_heads": 4,
    "head_dim": 64,
    "experts": 128,
    "top_k": 4,
    "hidden": 2048,
    "vocab": 32_000,
    "batch": 8,
    "length": 4096,
    "block": 512,
    "unroll": 0,
}
# Stay float32: small, and the sums that they enter are float32.
IN_FLOAT32 = ("scale", "router")


def main() -> None:
    """Measures the peer, then this package, prints the table and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    for name, size in SIZES.items():
        told = "model.scan_unroll; 0: all layers" if name == "unroll" else None
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size, help=told)
    parser.add_argument("--expert-kernels", default="auto", help="model.expert_kernel, with commas")
    parser.add_argument("--attention-kernel", default="auto", help="model.attention_kernel")
    parser.add_argument("--remats", default="none", help="model.remat, with commas")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has torch")
    parser.add_argument("--peer-ways", default=WAYS, help="of the peer, with semicolons")
    parser.add_argument("--trace", type=pathlib.Path, help="folder for a profile of three steps")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    request = {name: getattr(arguments, name) for name in (*SIZES, "steps", "warmup")}
    request["ways"] = arguments.peer_ways.split(";")
    theirs = peer.run(PEER, request, python=arguments.peer_python, package="transformers")
    # Read when JAX first looks for devices; what is left is for the libraries' own memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    found = {
        "ours": [
            measure(
                spec_for(request, arguments.attention_kernel, kernel, remat),
                request,
                trace=arguments.trace,
            )
            for kernel in arguments.expert_kernels.split(",")
            for remat in arguments.remats.split(",")
        ],
        "peer": theirs,
        "request": request,
        "made_with": {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
    }
    report(rich_console.Console(width=170), found)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def spec_for(
    sizes: dict[str, Any], attention_kernel: Any, expert_kernel: Any, remat: Any
) -> ModelSpec:
    """The decoder that is the same as the peer's."""
    return ModelSpec(
        vocab_size=sizes["vocab"],
        context_length=sizes["length"],
        num_layers=sizes["layers"],
        model_dim=sizes["dim"],
        num_heads=sizes["heads"],
        num_kv_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"],
        rope_base=10_000.0,
        attention="full",
        attention_kernel=attention_kernel,
        block_size=sizes["block"],
        num_summaries=0,
        num_experts=sizes["experts"],
        num_groups=1,
        top_groups=1,
        top_k=sizes["top_k"],
        num_shared_experts=0,
        expert_hidden_dim=sizes["hidden"],
        router_scores="softmax",
        router_weights="renormalized",
        router_scale=1.0,
        balance="loss",
        load_balance_weight=BALANCE_WEIGHT,
        router_z_weight=0.0,
        bias_update_rate=0.0,
        dispatch="dropless",
        capacity_factor=0.0,
        expert_kernel=expert_kernel,
        tie_embeddings=False,
        norm_eps=1e-6,
        remat=remat,
        scan_unroll=sizes["unroll"] or sizes["layers"],
        compute_dtype="bfloat16",
    )


def measure(
    spec: ModelSpec,
    request: dict[str, Any],
    *,
    draw: Callable[[Decoder, jax.Array], Any] | None = None,
    trace: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Seconds, memory and loss of one model whose parameters `draw` makes, or else `initial`."""
    model = Decoder(spec)
    shape = (request["batch"], request["length"])
    tokens = jax.random.randint(jax.random.key(1), shape, 0, spec.vocab_size, jnp.int32)
    params = jax.jit(lambda key: (draw or initial)(model, key))(jax.random.key(0))
    started = time.perf_counter()
    compiled = jax.jit(lambda *inputs: gradients(model, *inputs)).lower(params, tokens).compile()
    compile_seconds = time.perf_counter() - started
    norm = float(jax.jit(gradient_norm)(compiled(params, tokens)[1]))
    losses, seconds = [], []
    for _ in range(1 + request["warmup"] + request["steps"]):
        started = time.perf_counter()
        losses.append(jax.block_until_ready(compiled(params, tokens))[0])
        seconds.append(time.perf_counter() - started)
    if trace is not None:
        with jax.profiler.trace(str(trace / f"{spec.expert_kernel}_{spec.remat}")):
            for _ in range(3):
                jax.block_until_ready(compiled(params, tokens))
    planned: Any = compiled.memory_analysis()
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "name": f"experts {spec.expert_kernel}, attention {spec.attention_kernel}, "
        f"remat {spec.remat}, {spec.scan_unroll} layers at once",
        "seconds": seconds[1 + request["warmup"] :],
        "first_seconds": compile_seconds + seconds[0],
        "compile_seconds": compile_seconds,
        # The allocator's peak is that of the process so far, initialisation included.
        "allocator_peak_bytes": memory.get("peak_bytes_in_use"),
        "peak_bytes": planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        + planned.temp_size_in_bytes
        - planned.alias_size_in_bytes,
        "temporary_bytes": planned.temp_size_in_bytes,
        "loss": float(losses[0]),
        "gradient_norm": norm,
        "num_parameters": accounting.count_parameters(spec).total,
        "active_parameters": accounting.count_parameters(spec).active,
        "flops_per_token": accounting.training_flops(spec, length=request["length"]),
    }


def initial(model: Decoder, key: jax.Array) -> Any:
    """The parameters, in bfloat16 but for what is small."""

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = {part.key for part in path}
        return leaf if names & set(IN_FLOAT32) else leaf.astype(jnp.bfloat16)

    return jax.tree_util.tree_map_with_path(cast, in_float32(model, key))


def in_float32(model: Decoder, key: jax.Array) -> Any:
    """The parameters as a run draws them."""
    tokens = jnp.zeros((1, model.spec.block_size), jnp.int32)
    variables: Any = nn.unbox(model.init(key, tokens, document_ids=tokens, positions=tokens))
    return variables["params"]


def gradients(model: Decoder, params: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
    """The mean next-token loss with the balancing loss, and its gradient by every parameter."""
    num_rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], tokens.shape)
    weights = (positions < length - 1).astype(jnp.float32) / (num_rows * (length - 1))

    def loss(params: Any) -> jax.Array:
        output: Any = model.apply(
            {"params": params}, tokens, document_ids=jnp.ones_like(tokens), positions=positions
        )
        targets = jnp.roll(tokens, -1, axis=1)
        return nats.weighted(output, targets, weights, layout=None) + output.aux_loss

    return jax.value_and_grad(loss)(params)


def gradient_norm(tree: Any) -> jax.Array:
    """The norm over all leaves, summed in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def report(console: rich_console.Console, found: dict[str, Any]) -> None:
    """Prints what `main` measured, with ratios to the peer's first way."""
    request, made, other = (found[name] for name in ("request", "made_with", "peer"))
    ours, theirs = found["ours"], [] if other is None else other["measured"]
    num_tokens = request["batch"] * request["length"]
    flops = ours[0]["flops_per_token"]
    peak = progress.peak_flops(made["device"])
    table = numbers.table(
        f"Forward and backward, {request['layers']} layers of {request['experts']} experts, batch "
        f"{request['batch']} x {request['length']}, bfloat16",
        "model",
        "ms a step",
        "tokens/s",
        "x peer",
        "share of peak",
        "memory",
        "x peer",
        "first step s",
        "loss",
    )
    for each in (*ours, *theirs):
        took = statistics.median(each["seconds"])
        rate = num_tokens / took
        cells = [f"{1e3 * took:.1f}", f"{rate:,.0f}"]
        cells.append(_ratio(statistics.median(theirs[0]["seconds"]), took) if theirs else "")
        cells.append("" if peak is None else f"{rate * flops / peak:.1%}")
        bytes_, its = each["peak_bytes"], theirs[0]["peak_bytes"] if theirs else None
        cells.append("" if bytes_ is None else f"{bytes_ / 1e9:.1f} GB")
        cells.append("" if bytes_ is None or its is None else _ratio(bytes_, its))
        cells += [f"{each['first_seconds']:.1f}", f"{each['loss']:.3f}"]
        table.add_row(each["name"], *cells)
    console.print(table)
    uniform = math.log(request["vocab"])
    wrong = [each["name"] for each in (*ours, *theirs) if not abs(each["loss"] - uniform) < 1.0]
    count = {name: numbers.human_count(ours[0][f"{name}_parameters"]) for name in ("num", "active")}
    console.print(
        f"losses are near ln({request['vocab']}) = {uniform:.3f}"
        if not wrong
        else f"LOSS FAR FROM ln({request['vocab']}) = {uniform:.3f}: {wrong}",
        f"{count['num']} parameters, {count['active']} active; {numbers.human_flops(flops)}FLOPs a "
        f"token; peak of the device "
        + ("not known" if peak is None else f"{peak / 1e12:.0f} TFLOP/s"),
        f"norms of the gradients here: {[round(each['gradient_norm'], 4) for each in ours]}",
        "memory: here what the compiled program needs, arguments and gradients included (the "
        f"allocator's peak: {[each['allocator_peak_bytes'] for each in ours]}); the peer's is "
        "max_memory_allocated",
        f"{made['device']}, jax {made['jax']}, Python {made['python']}; "
        + (
            "no transformers there: no peer"
            if other is None
            else f"{other['device']}, torch {other['torch']}, transformers {other['transformers']}"
        ),
        sep="\n",
        highlight=False,
    )


def _ratio(one: float, other: float) -> str:
    return f"{one / other:.2f}"


if __name__ == "__main__":
    main()
