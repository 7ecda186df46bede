"""A whole run of PPO or GRPO, from settings to a finished directory. Floor 6."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console

from deepseek_jax.core.policy_spec import PolicyRunSpec
from deepseek_jax.data import order
from deepseek_jax.data.problems import encoded
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.nn.model import Decoder
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.reinforcement import drawing, policy_programs, problem_files
from deepseek_jax.reinforcement import state as state_lib
from deepseek_jax.reinforcement.policy_programs import Programs
from deepseek_jax.reinforcement.rewards import Verdict
from deepseek_jax.training import stage_inputs, stage_loop, workdir
from deepseek_jax.training.loop import Outcome

# Tasks whose right answers are known token by token, so that verifying is part of the program.
EXACT_TASKS = ("arithmetic", "lists", "strings")


def train(
    spec: PolicyRunSpec, run_directory: str | pathlib.Path, *, console: rich_console.Console
) -> Outcome:
    """Trains a policy; goes on where it was left.

    Args:
      spec: all settings.
      run_directory: where everything is written.
      console: for the progress.

    Raises:
      ValueError: the settings, or what stands in the directory or its inputs, do not fit.
      NonFiniteError: a reward, a loss or a gradient is not finite.
    """
    with workdir.claimed(run_directory, spec) as directory:
        stage, tokenizer, facts = _build(spec)

        def begin(step: int) -> None:
            stage_inputs.begin(directory, spec, tokenizer, facts, step=step)

        return stage_loop.run(stage, spec.train, directory, begin=begin, console=console)


def _build(spec: PolicyRunSpec) -> tuple[stage_loop.Stage, Tokenizer, dict[str, Any]]:
    layout, _ = stage_inputs.make_layout(spec.mesh)
    length = spec.rollout.sequence_length(spec.model.block_size)
    start = stage_inputs.open_model(
        spec.files.start_from, Decoder(spec.model), sequence_length=length, layout=layout, step=None
    )
    facts = {
        "problems": problem_files.read_facts(spec.files.problems)["sha256"],
        "start_from": start.fingerprint,
    }
    reward_variables = None
    if spec.files.reward_from is not None:
        scoring = stage_inputs.open_model(
            spec.files.reward_from,
            ScalarDecoder(spec.model),
            sequence_length=length,
            layout=layout,
            step=None,
        )
        facts["reward_from"] = scoring.fingerprint
        reward_variables = {"params": scoring.model.params, "balance": scoring.model.balance}
    tokens = drawing.tokens_of(start.tokenizer, spec.model)
    compiled = policy_programs.make(spec, layout, tokens)
    stage = stage_loop.Stage(
        compiled.abstract,
        lambda: compiled.initial(start.model, jax.random.key(spec.seed)),
        _make_advance(spec, compiled, reward_variables, start.tokenizer),
        _make_measure(spec, compiled, start.tokenizer),
    )
    return stage, start.tokenizer, facts


def _make_advance(
    spec: PolicyRunSpec, compiled: Programs, reward_variables: Any, tokenizer: Tokenizer
) -> Any:
    listed = problem_files.read(spec.files.problems, "policy")
    table = drawing.encode(listed, tokenizer, spec.rollout, block_size=spec.model.block_size)

    def batch_of(step: int) -> np.ndarray:
        return order.batch_ids(
            step=step, batch_size=spec.rollout.num_prompts, num_rows=len(listed), seed=spec.seed
        )

    def advance(state: Any, step: int) -> Any:
        prompts = drawing.as_prompts(encoded.take(table, batch_of(step)))
        return compiled.iteration(state, prompts, reward_variables)

    def advance_with_host(state: Any, step: int) -> Any:
        ids = batch_of(step)
        drawn, verdict = compiled.collect(state, drawing.as_prompts(encoded.take(table, ids)))
        asked = np.repeat(ids, spec.rollout.samples_per_prompt)
        fetched = jax.device_get(drawn)
        is_right = drawing.verify_texts(
            fetched.responses,
            fetched.response_mask,
            fetched.is_finished,
            [listed[i] for i in asked],
            tokenizer,
        )
        judged = Verdict(jnp.asarray(is_right), verdict.has_format)
        return compiled.update(state, drawn, judged, reward_variables)

    return advance if listed[0].task in EXACT_TASKS else advance_with_host


def _make_measure(spec: PolicyRunSpec, compiled: Programs, tokenizer: Tokenizer) -> Any:
    """Accuracy on the validation problems at the rollout's temperature.

    In bfloat16 also the share of expert choices in which rollout and training differ.
    """
    listed = problem_files.read(spec.files.problems, "validation")
    table = drawing.encode(listed, tokenizer, spec.rollout, block_size=spec.model.block_size)
    rounds_apart = spec.model.compute_dtype != "float32" and not spec.model.is_dense

    def measure(state: state_lib.PolicyState) -> dict[str, float]:
        variables, key = {"params": state.params, "balance": state.balance}, jax.random.key(0)
        size = spec.rollout.num_rows
        found = drawing.answer_all(compiled.draw, variables, table, key, batch_size=size)
        is_right = found.is_right
        if listed[0].task not in EXACT_TASKS:
            mask = np.arange(found.responses.shape[1]) < found.lengths[:, None]
            is_right = drawing.verify_texts(
                found.responses, mask, found.is_finished, listed, tokenizer
            )
        measured = {"heldout_accuracy": float(np.mean(is_right))}
        if rounds_apart:
            first = drawing.as_prompts(encoded.take(table, np.arange(size) % len(listed)))
            drawn, _ = compiled.draw(variables, first, key)
            measured["expert_mismatch"] = float(compiled.expert_mismatch(variables, first, drawn))
        return measured

    return measure
