"""A whole run of a reward model on people's preferences, from a file of dialogues. Floor 6."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from rich import console as rich_console

from deepseek_jax.core.preference_spec import PreferenceRunSpec
from deepseek_jax.data import preferences, tokenizers
from deepseek_jax.data.preferences import Preference
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.nn.model import Decoder
from deepseek_jax.reinforcement import pair_stage, pairs
from deepseek_jax.reinforcement.pair_stage import PairTable
from deepseek_jax.training import stage_inputs, stage_loop, workdir
from deepseek_jax.training.loop import Outcome


class Material(NamedTuple):
    """The pairs of a file as rows, split.

    Attributes:
      table: of the pairs that were taken.
      facts: what was read, left out and split, as it stands in `record.json`.
    """

    table: PairTable
    facts: dict[str, Any]


def train(
    spec: PreferenceRunSpec, run_directory: str | pathlib.Path, *, console: rich_console.Console
) -> Outcome:
    """Reads the pairs and trains; goes on where it was left.

    Args:
      spec: all settings.
      run_directory: where everything is written, `pairs.npz` too.
      console: for the progress, and for what was left out.

    Raises:
      FileNotFoundError: no file of pairs, or no run to start from.
      ValueError: a line of the file, the settings, or what stands in the directory does not fit.
      NonFiniteError: a loss or a gradient is not finite.
    """
    path = preferences.locate(spec.files.pairs)
    with workdir.claimed(run_directory, spec) as directory:
        layout, _ = stage_inputs.make_layout(spec.mesh)
        length = spec.pairs.sequence_length
        start = stage_inputs.open_model(
            spec.files.start_from,
            Decoder(spec.model),
            sequence_length=length,
            layout=layout,
            step=None,
        )
        tokenizers.check_vocabulary(start.tokenizer, model_vocab_size=spec.model.vocab_size)
        material = load(path, spec, start.tokenizer)
        facts = {"pairs": material.facts, "start_from": start.fingerprint}
        for line in _told(material):
            console.print(line, soft_wrap=True, markup=False)
        stage = pair_stage.build(spec, start.model, material.table, layout, sequence_length=length)

        def begin(step: int) -> None:
            if not workdir.has_begun(directory):
                pair_stage.save(directory, material.table)
            stage_inputs.begin(directory, spec, start.tokenizer, facts, step=step)

        return stage_loop.run(stage, spec.train, directory, begin=begin, console=console)


def load(path: pathlib.Path, spec: PreferenceRunSpec, tokenizer: Tokenizer) -> Material:
    """The pairs of a file as rows of whole dialogues, split by what their dialogues open with.

    Args:
      path: of the file.
      spec: of the run.
      tokenizer: of the rows.

    Returns:
      Pairs whose `problem_ids` are their groups; no opening and no dialogue is on both sides.

    Raises:
      ValueError: a line that is refused, or nothing to train on or to measure.
    """
    length = spec.pairs.sequence_length
    found = preferences.read(path, blank=spec.pairs.blank, equal=spec.pairs.equal)
    sides = [
        pairs.documents([getattr(pair, side) for pair in found.pairs], tokenizer)
        for side in ("chosen", "rejected")
    ]
    fits = np.ones(len(found.pairs), bool)
    left_out = dict(found.left_out)
    for i, pair in enumerate(found.pairs):
        num_tokens = max(len(side[i]) for side in sides)
        if num_tokens <= length:
            continue
        if spec.pairs.too_long == "error":
            raise ValueError(
                f"{path}:{pair.line}: the longer side needs {num_tokens} tokens of "
                f'pairs.sequence_length={length}; pairs.too_long="leave_out" leaves such pairs out'
            )
        fits[i] = False
        left_out.setdefault("too_long", []).append(pair.line)
    kept = np.flatnonzero(fits)
    taken = [found.pairs[i] for i in kept]
    group_ids = preferences.groups(taken)
    try:
        is_heldout = preferences.split(group_ids, heldout_fraction=spec.pairs.heldout_fraction)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; left out: {left_out}") from error
    rows = [pairs.rows([side[i] for i in kept], length=length) for side in sides]
    made = pairs.Pairs(*rows[0], *rows[1], group_ids)
    table = PairTable(
        *(pairs.take(made, np.flatnonzero(mask)) for mask in (~is_heldout, is_heldout))
    )
    leaks = preferences.leaks(
        *(
            [text for pair in _of(taken, mask) for text in (pair.chosen, pair.rejected)]
            for mask in (~is_heldout, is_heldout)
        )
    )
    if any(leaks):
        raise ValueError(f"{path}: the split leaks: {leaks}")
    facts = {
        "file": path.name,
        "sha256": found.sha256,
        "num_lines": found.num_lines,
        "num_train": len(table.train.chosen),
        "num_heldout": len(table.heldout.chosen),
        "num_openings": len(np.unique(group_ids)),
        "num_heldout_openings": len(np.unique(group_ids[is_heldout])),
        "on_both_sides": leaks._asdict(),
        "left_out": left_out,
    }
    return Material(table, facts)


def _of(listed: list[Preference], mask: np.ndarray) -> list[Preference]:
    return [listed[i] for i in np.flatnonzero(mask)]


def _told(material: Material) -> list[str]:
    """What was read, left out and split."""
    facts = material.facts
    counts = {reason: len(lines) for reason, lines in facts["left_out"].items()}
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return [
        f"{facts['file']}: {facts['num_lines']:,} pairs; left out: {left_out or 'none'}"
        + (" (lines in record.json)" if counts else ""),
        f"{pair_stage.describe(material.table)}; {facts['num_openings']:,} dialogue openings, "
        f"{facts['num_heldout_openings']:,} of them held out; on both sides: "
        f"{facts['on_both_sides']['openings']} openings, {facts['on_both_sides']['texts']} "
        "dialogues",
    ]
