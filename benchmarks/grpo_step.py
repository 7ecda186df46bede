"""Seconds of one iteration of GRPO: draw answers, score them, learn; beside it a step of TRL.

Run: python -m benchmarks.grpo_step [--dense] [--attention=full] [--out=runs/grpo_step.json]

The peer runs in the same call, on the same device, in a Python of its own:

    python3 -m venv .venv-trl && .venv-trl/bin/pip install trl==1.16 torch
    python -m benchmarks.grpo_step --peer-python=.venv-trl/bin/python

The shape is the peer's: 16 prompts x 8 answers of at most 37 tokens, a decoder of 3 layers of
width 128 with 4 heads of 32, and 4 experts of width 128, top-2 (`--dense`: one network of width
256); one update an iteration; float32. Weights are random and the vocabulary has 264 entries, so
that few answers end early; the loop of the sampler runs to the last token as long as one has not
ended. Random weights never answer rightly: an answer is verified, and then also counts as right if
the sum of its ids is even, so that there is something to learn from. After some 20 iterations the
policy has learned that, all answers earn the same, and the benchmark ends with an error.

The whole iteration is `learner.make_iteration`, one jitted function that consumes its state, with
new prompts each time; the parts are the same functions jitted apart. Times are medians of rounds in
which whole and parts take turns, until results are there.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console

from benchmarks import grpo_shape, peer
from deepseek_jax.core.policy_spec import GrpoRunSpec
from deepseek_jax.data import order, tokenizers
from deepseek_jax.data.problems import encoded
from deepseek_jax.nn.model import Decoder
from deepseek_jax.objectives import advantages
from deepseek_jax.reinforcement import drawing, forward, grpo, learner
from deepseek_jax.reinforcement import state as state_lib
from deepseek_jax.reinforcement.rewards import Verdict
from deepseek_jax.reinforcement.rollout import Prompts, Rollout
from deepseek_jax.reinforcement.state import PolicyState
from deepseek_jax.training import checkpoint, optimizer
from deepseek_jax.training import state as train_state
from experiments import numbers

PEER = "benchmarks.trl_grpo_step"
NO_PEER = "TRL is not installed: no baseline in this run"


def main() -> None:
    """Measures, prints the table, and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", action="store_true", help="one network of width 256")
    parser.add_argument("--attention", choices=("local_global", "full"), default="local_global")
    parser.add_argument("--iterations", type=int, default=10, help="timed")
    parser.add_argument("--warmup", type=int, default=3, help="not timed")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has TRL")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    spec = grpo_shape.make_spec(
        is_dense=arguments.dense,
        attention=arguments.attention,
        num_steps=arguments.warmup + arguments.iterations,
    )
    load_before = os.getloadavg()
    result = measure(spec, num_timed=arguments.iterations)
    load_between = os.getloadavg()
    other = run_peer(spec, python=arguments.peer_python, num_timed=arguments.iterations)
    result |= {
        "peer": other,
        "load_average": {"before": load_before, "between": load_between, "after": os.getloadavg()},
        "made_with": made_with(spec),
    }
    report(rich_console.Console(width=120), result)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(spec: GrpoRunSpec, *, num_timed: int) -> dict[str, Any]:
    """Makes `spec.train.num_steps` iterations, whole and in parts, and times the last ones.

    Args:
      spec: the settings; one device.
      num_timed: iterations that count.

    Raises:
      RuntimeError: something is not finite, or all answers of an iteration earn the same.
    """
    tokenizer = tokenizers.tagged_bytes_tokenizer()
    tokens = drawing.tokens_of(tokenizer, spec.model)
    table = drawing.encode(
        grpo_shape.problems(), tokenizer, spec.rollout, block_size=spec.model.block_size
    )
    transform = optimizer.make_optimizer(
        spec.optimizer, num_steps=spec.train.num_steps * spec.update.num_updates
    )
    made = grpo.make_halves(spec, transform, None, None, tokens)
    halves = made._replace(collect=with_even_sums(made.collect))
    iteration = learner.make_iteration(halves, shardings=None)
    collect = jax.jit(halves.collect)
    score = jax.jit(learner.with_exact_matmuls(make_score(spec)))
    update = learner.make_update(halves, shardings=None)
    initial = jax.jit(make_initial(spec, transform))
    whole, parts = initial(), initial()
    num_params = sum(leaf.size for leaf in jax.tree.leaves(whole.params))
    seconds: dict[str, list[float]] = {name: [] for name in ("whole", "collect", "score", "update")}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        answer = jax.block_until_ready(call(*arguments))
        seconds[name].append(time.perf_counter() - start)
        return answer

    def prompts_of(step: int) -> Prompts:
        ids = order.batch_ids(
            step=step,
            batch_size=spec.rollout.num_prompts,
            num_rows=grpo_shape.NUM_PROBLEMS,
            seed=spec.seed,
        )
        return drawing.as_prompts(encoded.take(table, ids))

    def advance(state: PolicyState, step: int) -> tuple[PolicyState, learner.Metrics]:
        return iteration(state, prompts_of(step), None)

    def draw(state: PolicyState, step: int) -> tuple[Rollout, Verdict]:
        return collect(state, prompts_of(step))

    told: dict[str, list[dict[str, float]]] = {"whole": [], "parts": []}
    for step in range(spec.train.num_steps):
        whole, metrics = timed("whole", advance, whole, step)
        told["whole"].append(_numbers(metrics))
        drawn, verdict = timed("collect", draw, parts, step)
        timed("score", score, parts, drawn, verdict)
        parts, metrics = timed("update", update, parts, drawn, verdict, None)
        told["parts"].append(_numbers(metrics))
    check(told["whole"] + told["parts"])
    kept = {name: values[-num_timed:] for name, values in seconds.items()}
    medians = {name: statistics.median(values) for name, values in kept.items()}
    return {
        "seconds_per_iteration": medians["whole"],
        "rollouts_per_second": spec.rollout.num_rows / medians["whole"],
        "collect_seconds": medians["collect"],
        "score_seconds": medians["score"],
        "update_seconds": medians["update"],
        "iteration_seconds": sorted(kept["whole"]),
        "first_call_seconds": seconds["whole"][0],
        "num_parameters": num_params,
        "num_rollouts": spec.rollout.num_rows,
        "max_new_tokens": spec.rollout.max_new_tokens,
        "mean_tokens_drawn": _mean(told["whole"][-num_timed:], "length"),
        "finished_rate": _mean(told["whole"][-num_timed:], "finished_rate"),
        "metrics": told,
    }


def make_initial(spec: GrpoRunSpec, transform: Any) -> Callable[[], PolicyState]:
    """A policy of random weights that is its own reference; no run is opened."""

    def initial() -> PolicyState:
        init_key, key = jax.random.split(jax.random.key(spec.seed))
        fresh = train_state.initial_state(
            Decoder(spec.model),
            optimizer.without_moments(),
            init_key,
            sequence_length=spec.rollout.sequence_length(spec.model.block_size),
        )
        return state_lib.initial_policy(
            transform,
            checkpoint.Model(fresh.params, fresh.balance, 0),
            key,
            kl_coefficient=spec.kl.coefficient,
            critic=None,
        )

    return initial


def with_even_sums(collect: learner.Collect) -> learner.Collect:
    """Draws and verifies as `collect`; an answer whose ids have an even sum is right too."""

    def collect_even(state: PolicyState, prompts: Prompts) -> tuple[Rollout, Verdict]:
        drawn, verdict = collect(state, prompts)
        total = jnp.sum(jnp.where(drawn.response_mask, drawn.responses, 0), axis=1)
        return drawn, verdict._replace(is_right=verdict.is_right | (total % 2 == 0))

    return collect_even


def make_score(spec: GrpoRunSpec) -> Callable[[PolicyState, Rollout, Verdict], Any]:
    """The part of the update before its gradient: rewards, reference log-probabilities."""
    actor = Decoder(spec.model)

    def score(state: PolicyState, drawn: Rollout, verdict: Verdict) -> Any:
        earned, _ = learner.scored(spec, None, None, drawn, verdict)
        gains = advantages.group_advantages(
            earned,
            group_size=spec.rollout.samples_per_prompt,
            divide_by_std=spec.group.divide_by_std,
        )
        return gains, forward.policy_terms(actor, state.reference, drawn).logprobs

    return score


def check(told: list[dict[str, float]]) -> None:
    """Raises if what was timed learned nothing, or from something that is no number."""
    for step, metrics in enumerate(told):
        wrong = sorted(name for name, value in metrics.items() if not np.isfinite(value))
        if wrong:
            raise RuntimeError(f"iteration {step}: not finite: {', '.join(wrong)}")
        if not (metrics["reward_std"] > 0.0 and metrics["gradient_norm"] > 0.0):
            raise RuntimeError(f"iteration {step}: all answers earned the same: {metrics}")


def run_peer(spec: GrpoRunSpec, *, python: str, num_timed: int) -> dict[str, Any] | None:
    """TRL on the same shape, device and prompts; None if that Python has no TRL.

    Raises:
      RuntimeError: TRL is there and fails.
    """
    request = {
        "device": jax.default_backend(),
        "prompts": [problem.prompt for problem in grpo_shape.problems()],
        "num_prompts": spec.rollout.num_prompts,
        "samples_per_prompt": spec.rollout.samples_per_prompt,
        "max_new_tokens": spec.rollout.max_new_tokens,
        "temperature": spec.rollout.temperature,
        "vocab_size": spec.model.vocab_size,
        "num_layers": spec.model.num_layers,
        "model_dim": spec.model.model_dim,
        "num_heads": spec.model.num_heads,
        "num_kv_heads": spec.model.num_kv_heads,
        "head_dim": spec.model.head_dim,
        "num_experts": spec.model.num_experts,
        "top_k": spec.model.top_k,
        "hidden_dim": spec.model.expert_hidden_dim,
        "learning_rate": spec.optimizer.learning_rate,
        "beta2": spec.optimizer.beta2,
        "clip_norm": spec.optimizer.clip_norm,
        "clip": spec.update.clip,
        "kl_coefficient": spec.kl.coefficient,
        "num_warmup": spec.train.num_steps - num_timed,
        "num_timed": num_timed,
    }
    return peer.run(PEER, request, python=python, package="trl")


def made_with(spec: GrpoRunSpec) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "attention": spec.model.attention,
        "num_experts": spec.model.num_experts,
    }


def report(console: rich_console.Console, result: dict[str, Any]) -> None:
    """Prints what `main` measured."""
    whole, made = result["seconds_per_iteration"], result["made_with"]
    console.print(
        f"{made['device']} ({made['backend']}, {made['num_cores']} cores), jax {made['jax']}, "
        f"flax {made['flax']}, Python {made['python']}",
        f"{made['num_experts']} expert(s), attention {made['attention']}, "
        f"{numbers.human_count(result['num_parameters'])} parameters",
        f"{result['num_rollouts']} answers of {result['mean_tokens_drawn']:.1f} tokens on average, "
        f"at most {result['max_new_tokens']}; {result['finished_rate']:.0%} ended before that",
        f"load average (1, 5, 15 min) {_loads(result['load_average'])}",
        sep="\n",
    )
    table = numbers.table("An iteration of GRPO", "", "seconds", "share", "rollouts/s")
    table.add_row("whole, one program", f"{whole:.4f}", "", f"{result['rollouts_per_second']:,.0f}")
    learn = result["update_seconds"] - result["score_seconds"]
    rows = {
        "rollout and verifier": result["collect_seconds"],
        "reward, reference log-probs": result["score_seconds"],
        "update (its half less the line above)": learn,
        "sum of the parts, jitted apart": result["collect_seconds"] + result["update_seconds"],
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:.4f}", f"{value / whole:.0%}", "")
    other = result["peer"]
    if other is not None:
        name = f"TRL {other['made_with']['trl']}, a step"
        rate = f"{other['rollouts_per_second']:,.0f}"
        table.add_row(name, f"{other['seconds_per_step']:.4f}", "", rate)
    console.print(table)
    if other is None:
        console.print(NO_PEER)
        return
    peer_made = other["made_with"]
    console.print(
        f"TRL's step takes {other['seconds_per_step'] / whole:.2f} times as long; on "
        f"{peer_made['device']}, torch {peer_made['torch']}, transformers "
        f"{peer_made['transformers']}, {peer_made['dtype']}, "
        f"{numbers.human_count(other['num_parameters'])} parameters, answers of "
        f"{other['mean_tokens_drawn']:.1f} tokens on average"
    )


def _loads(averages: dict[str, tuple[float, ...]]) -> str:
    return ", ".join(
        f"{when} {' '.join(f'{value:.2f}' for value in values)}"
        for when, values in averages.items()
    )


def _numbers(metrics: learner.Metrics) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _mean(told: list[dict[str, float]], name: str) -> float:
    return statistics.mean(metrics[name] for metrics in told)


if __name__ == "__main__":
    main()
