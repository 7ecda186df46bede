"""A whole run of the reward model, from settings to a finished directory. Floor 6."""

import pathlib

import jax
import numpy as np
from rich import console as rich_console

from deepseek_jax.core.stage_spec import RewardRunSpec
from deepseek_jax.data.problems import encoded
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.nn.model import Decoder
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.reinforcement import (
    drawing,
    pair_stage,
    pairs,
    problem_files,
)
from deepseek_jax.reinforcement.pairs import Pairs
from deepseek_jax.training import stage_inputs, stage_loop, workdir
from deepseek_jax.training.loop import Outcome


def train(
    spec: RewardRunSpec, run_directory: str | pathlib.Path, *, console: rich_console.Console
) -> Outcome:
    """Draws the pairs if they are not there yet, and trains; goes on where it was left.

    Args:
      spec: all settings.
      run_directory: where everything is written, `pairs.npz` too.
      console: for the progress.

    Raises:
      ValueError: the settings, or what stands in the directory or its inputs, do not fit.
      NonFiniteError: a loss or a gradient is not finite.
    """
    with workdir.claimed(run_directory, spec) as directory:
        layout, on_mesh = stage_inputs.make_layout(spec.mesh)
        length = spec.rollout.sequence_length(spec.model.block_size)
        start = stage_inputs.open_model(
            spec.files.start_from,
            Decoder(spec.model),
            sequence_length=length,
            layout=layout,
            step=None,
        )
        facts = {
            "problems": problem_files.read_facts(spec.files.problems)["sha256"],
            "start_from": start.fingerprint,
        }
        # Pairs of a run that never began may be of other settings or of another start.
        table = pair_stage.read(directory) if workdir.has_begun(directory) else None
        if table is None:
            table = _make_pairs(spec, start, on_mesh, length)
            pair_stage.save(directory, table)
        console.print(pair_stage.describe(table), soft_wrap=True)
        stage = pair_stage.build(spec, start.model, table, layout, sequence_length=length)

        def begin(step: int) -> None:
            stage_inputs.begin(directory, spec, start.tokenizer, facts, step=step)

        return stage_loop.run(stage, spec.train, directory, begin=begin, console=console)


def _make_pairs(
    spec: RewardRunSpec, start: stage_inputs.Opened, on_mesh: Layout | None, length: int
) -> pair_stage.PairTable:
    listed = problem_files.read(spec.files.problems, "reward")
    generator = np.random.default_rng(spec.seed)
    num_heldout = max(1, round(spec.pairs.heldout_fraction * len(listed)))
    # At random: pairs are made problem after problem, so that they may be of the first ones only.
    order_of = np.random.default_rng([spec.seed, 1]).permutation(len(listed))
    is_heldout = order_of < num_heldout
    parts = []
    if spec.pairs.num_sampled:
        parts.append(_sampled(spec, start, on_mesh, listed, generator))
    if spec.pairs.num_built:
        parts.append(
            pairs.built(
                listed,
                start.tokenizer,
                generator,
                num_pairs=spec.pairs.num_built,
                length=length,
            )
        )
    made = pairs.joined(parts)
    kept = is_heldout[made.problem_ids]
    if kept.all() or not kept.any():
        raise ValueError(
            f"pairs.heldout_fraction={spec.pairs.heldout_fraction}: leaves {np.sum(~kept)} pairs "
            f"to train on and {np.sum(kept)} to measure; ask for more pairs, or another share"
        )
    return pair_stage.PairTable(
        pairs.take(made, np.flatnonzero(~kept)), pairs.take(made, np.flatnonzero(kept))
    )


def _sampled(
    spec: RewardRunSpec,
    start: stage_inputs.Opened,
    on_mesh: Layout | None,
    listed: list[Problem],
    generator: np.random.Generator,
) -> Pairs:
    """Pairs drawn from the starting model, problem after problem until there are enough."""
    tokens = drawing.tokens_of(start.tokenizer, spec.model)
    table = drawing.encode(listed, start.tokenizer, spec.rollout, block_size=spec.model.block_size)
    draw = drawing.make_draw(
        Decoder(spec.model, on_mesh), spec.rollout, tokens, temperature=spec.rollout.temperature
    )
    variables = {"params": start.model.params, "balance": start.model.balance}
    found: list[Pairs] = []
    samples, size = spec.rollout.samples_per_prompt, spec.rollout.num_prompts
    for number, first in enumerate(range(0, len(listed), size)):
        ids = np.arange(first, min(first + size, len(listed)))
        asked = encoded.take(table, np.repeat(ids, samples))
        key = jax.random.fold_in(jax.random.key(spec.seed), number)
        answers = drawing.answer_all(draw, variables, asked, key, batch_size=size * samples)
        part = pairs.sampled(
            answers, generator, samples_per_prompt=samples, limit=spec.pairs.pairs_per_problem
        )
        found.append(part._replace(problem_ids=part.problem_ids + first))
        if sum(len(listed.chosen) for listed in found) >= spec.pairs.num_sampled:
            break
    made = pairs.joined(found)
    if len(made.chosen) < spec.pairs.num_sampled:
        raise ValueError(
            f"pairs.num_sampled={spec.pairs.num_sampled}: the {len(listed)} problems of the split "
            f"'reward' gave only {len(made.chosen)}; ask for fewer, or for more problems"
        )
    return pairs.take(made, np.arange(spec.pairs.num_sampled))
