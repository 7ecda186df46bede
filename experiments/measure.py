"""Measures a model on problems: accuracy, samples, latency; and a reward model on pairs."""

import json
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from deepseek_jax.core import accounting, mesh_spec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.stage_spec import RolloutSpec
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.decoding import generate
from deepseek_jax.evaluation import accuracy, calibration, recipe_findings
from deepseek_jax.evaluation.accuracy import Accuracy
from deepseek_jax.nn.model import Decoder
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.parallel import layout
from deepseek_jax.reinforcement import (
    drawing,
    pair_stage,
    pairs,
    policy_stage,
    problem_files,
    reward_model,
)
from deepseek_jax.training import stage_inputs
from experiments import settings

NUM_SAMPLES = 5
NUM_BINS = 10
_SEED = 0
_TIMED_RUNS = 5
# Of arithmetic: what `pairs.styled` calls its answers.
_STYLES = (
    "Named right against wrong: *worked* is the work written out, *direct* the answer alone; "
    "*careless* forgets carries, *slip* has one wrong column, *extra carry* a carry in every "
    "column, *changed answer* the right work with one digit of the answer changed; *guess* is a "
    "wrong answer alone."
)


class Measured(NamedTuple):
    """Answers of one model at one temperature."""

    accuracy: Accuracy
    samples: tuple[recipe_findings.PolicySample, ...]


class Model(NamedTuple):
    """A run opened on one device, dropless."""

    spec: ModelSpec
    decoder: Decoder
    opened: stage_inputs.Opened

    @property
    def variables(self) -> dict[str, Any]:
        """Parameters and choice biases."""
        return {"params": self.opened.model.params, "balance": self.opened.model.balance}


def open_run(directory: pathlib.Path, *, step: int | None) -> Model:
    """The model of a run on text or of a policy, of a step or the newest one.

    Raises:
      FileNotFoundError: no run there, or none that has saved anything.
      ValueError: settings, tokenizer and checkpoint do not belong together.
    """
    spec = settings.load_run_spec(directory).model.dropless()
    decoder = Decoder(spec)
    one_device = layout.make(mesh_spec.ONE_DEVICE, jax.devices())
    opened = stage_inputs.open_model(
        str(directory), decoder, sequence_length=spec.block_size, layout=one_device, step=step
    )
    return Model(spec, decoder, opened)


def measure(
    model: Model, listed: list[Problem], rollout: RolloutSpec, *, temperature: float
) -> Measured:
    """One answer to each problem.

    Args:
      model: of `open_run`.
      listed: the problems.
      rollout: widths, lengths, and answers of a batch.
      temperature: 0.0 is greedy.
    """
    tokenizer = model.opened.tokenizer
    tokens = drawing.tokens_of(tokenizer, model.spec)
    table = drawing.encode(listed, tokenizer, rollout, block_size=model.spec.block_size)
    draw = drawing.make_draw(model.decoder, rollout, tokens, temperature=temperature)
    answers = drawing.answer_all(
        draw, model.variables, table, jax.random.key(_SEED), batch_size=rollout.num_rows
    )
    is_right = answers.is_right
    mask = np.arange(answers.responses.shape[1]) < answers.lengths[:, None]
    if listed[0].task not in policy_stage.EXACT_TASKS:
        is_right = drawing.verify_texts(
            answers.responses, mask, answers.is_finished, listed, tokenizer
        )
    samples = tuple(
        recipe_findings.PolicySample(
            listed[i].prompt,
            tokenizer.decode(answers.responses[i][mask[i]]),
            bool(is_right[i]),
        )
        for i in range(NUM_SAMPLES)
    )
    found = accuracy.summarize(is_right, table.num_steps, answers.has_format, answers.lengths)
    return Measured(found, samples)


def save(path: pathlib.Path, sampled: Measured, greedy: Measured) -> None:
    """Writes what was measured of a model; `load` reads it."""
    content = {
        "sampled": accuracy.to_json(sampled.accuracy),
        "greedy": accuracy.to_json(greedy.accuracy),
        "samples": [sample._asdict() for sample in sampled.samples],
    }
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def load(path: pathlib.Path) -> tuple[Measured, Measured]:
    """What `save` wrote: at temperature 1, and greedy (whose samples are not kept)."""
    content = json.loads(path.read_text(encoding="utf-8"))
    samples = tuple(recipe_findings.PolicySample(**sample) for sample in content["samples"])
    return (
        Measured(accuracy.from_json(content["sampled"]), samples),
        Measured(accuracy.from_json(content["greedy"]), ()),
    )


def latency_ms(model: Model, prompt: str, rollout: RolloutSpec) -> float:
    """Milliseconds a token when one answer of full length is drawn alone; median of some runs."""
    tokenizer, width = model.opened.tokenizer, model.spec.block_size
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt).tolist()]
    prompts = np.zeros((1, -(-len(ids) // width) * width), np.int32)
    prompts[0, : len(ids)] = ids
    seconds = []
    for _ in range(1 + _TIMED_RUNS):
        start = time.perf_counter()
        drawn = generate.generate(
            model.decoder,
            model.variables,
            prompts,
            np.array([len(ids)], np.int32),
            jax.random.key(_SEED),
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=1.0,
            vocab_size=tokenizer.vocab_size,
            # No token ends it, so that every run draws the same number.
            end_id=-1,
        )
        jax.block_until_ready(drawn)
        seconds.append(time.perf_counter() - start)
    return 1000.0 * statistics.median(seconds[1:]) / rollout.max_new_tokens


def article_row(
    name: str, model: Model, accuracy_at_1: accuracy.Share | None, rollout: RolloutSpec, prompt: str
) -> recipe_findings.ArticleRow:
    """A model's row of the article's table."""
    count = accounting.count_parameters(model.spec)
    return recipe_findings.ArticleRow(
        model=name,
        latency_ms=latency_ms(model, prompt, rollout),
        accuracy=accuracy_at_1,
        active_parameters=count.active,
        total_parameters=count.total,
    )


def measure_reward_model(directory: pathlib.Path) -> recipe_findings.RewardModel:
    """A reward model on its held-out pairs, and on built pairs of every kind.

    Raises:
      FileNotFoundError: no such run, or nothing saved.
    """
    spec = settings.load_run_spec(directory)
    one_device = layout.make(mesh_spec.ONE_DEVICE, jax.devices())
    length = spec.rollout.sequence_length(spec.model.block_size)
    scorer = ScalarDecoder(spec.model)
    opened = stage_inputs.open_model(
        str(directory), scorer, sequence_length=length, layout=one_device, step=None
    )
    variables = {"params": opened.model.params, "balance": opened.model.balance}
    scores = reward_model.make_scores(scorer)
    table = pair_stage.read(directory)
    assert table is not None
    size = 2 * spec.pairs.batch_size
    chosen, rejected = reward_model.pair_logits(scores, variables, table.heldout, batch_size=size)
    probs, outcomes = calibration.oriented(chosen, rejected, seed=_SEED)
    listed = problem_files.read(spec.files.problems, "validation")
    generator = np.random.default_rng(_SEED)
    kinds = []
    by_kind = pairs.by_kind(listed, opened.tokenizer, generator, length=length)
    for (right, wrong), built in by_kind.items():
        first, second = reward_model.pair_logits(scores, variables, built, batch_size=size)
        kinds.append(
            recipe_findings.PairKind(
                f"{right} against {wrong}",
                calibration.pair_accuracy(first, second),
                float(np.mean(1.0 / (1.0 + np.exp(-second)))),
            )
        )
    sources = {"drawn from the base": spec.pairs.num_sampled, "built": spec.pairs.num_built}
    return recipe_findings.RewardModel(
        pairs=calibration.pair_accuracy(chosen, rejected),
        pairs_are="responses " + " and ".join(name for name, count in sources.items() if count),
        num_train_pairs=len(table.train.chosen),
        calibration_error=calibration.expected_calibration_error(
            probs, outcomes, num_bins=NUM_BINS
        ),
        num_bins=NUM_BINS,
        bins=calibration.reliability(probs, outcomes, num_bins=NUM_BINS),
        kinds=tuple(kinds),
        kinds_are=_STYLES if listed[0].task == "arithmetic" else "",
    )
