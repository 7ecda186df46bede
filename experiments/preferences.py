"""Measures a reward model on people's preferences, beside rules of length.

Run: python -m experiments.preferences --workdir=runs/preferences

Prints held-out pair accuracy with its interval; writes `preferences.md`, `preferences.json` and
`reliability.png` into the run's directory. It needs no file of pairs; the model before training is
measured too if the run that it came from is still there.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from rich import console as rich_console
from rich import markdown as rich_markdown

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.preference_spec import PreferenceRunSpec
from deepseek_jax.data import preferences
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.evaluation import page, policy_plots, preference_report
from deepseek_jax.nn.model import Decoder
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.parallel import layout
from deepseek_jax.reinforcement import pair_stage, replies, reward_model
from deepseek_jax.reinforcement.pairs import Pairs
from deepseek_jax.training import stage_inputs
from experiments import settings


def load_run_spec(workdir: pathlib.Path) -> PreferenceRunSpec:
    """The settings of a run on preferences.

    Raises:
      FileNotFoundError: no run there.
      ValueError: a run of another kind.
    """
    spec = settings.load_run_spec(workdir)
    if not isinstance(spec, PreferenceRunSpec):
        raise ValueError(f'{workdir}: a run of another kind than stage="preferences"')
    return spec


def measure(
    workdir: pathlib.Path, spec: PreferenceRunSpec, *, step: int | None
) -> preference_report.Findings:
    """Scores all pairs of a run.

    Args:
      workdir: of the run.
      spec: its settings.
      step: of the checkpoint; None is the newest.

    Raises:
      FileNotFoundError: nothing saved yet.
    """
    scorer = ScalarDecoder(spec.model)
    opened = _open(str(workdir), scorer, spec, step=step)
    table = pair_stage.read(workdir)
    if table is None:
        raise FileNotFoundError(f"{workdir / pair_stage.PAIRS_FILE}: no such file")
    variables = {"params": opened.model.params, "balance": opened.model.balance}
    scores = reward_model.make_scores(scorer)
    compared, texts = [], []
    for part in table:
        logits = reward_model.pair_logits(
            scores, variables, part, batch_size=2 * spec.pairs.batch_size
        )
        listed = texts_of(part, opened.tokenizer)
        chosen, rejected = (
            preference_report.Side(found, np.array([len(text) for text in side]), lengths)
            for found, side, lengths in zip(
                logits, listed, (part.chosen_lengths, part.rejected_lengths), strict=True
            )
        )
        compared.append(preference_report.Compared(chosen, rejected, part.problem_ids))
        texts.append([text for side in listed for text in side])
    record = json.loads((workdir / "record.json").read_text(encoding="utf-8"))
    return preference_report.measure(
        compared[0],
        compared[1],
        _base_gaps(spec, table.heldout, record["inputs"]["start_from"]),
        name=workdir.name,
        step=opened.model.step,
        pairs=record["inputs"]["pairs"],
        on_both_sides=preferences.leaks(*texts)._asdict(),
    )


def _open(
    directory: str, module: Any, spec: PreferenceRunSpec, *, step: int | None
) -> stage_inputs.Opened:
    """A run's model on one device."""
    return stage_inputs.open_model(
        directory,
        module,
        sequence_length=spec.pairs.sequence_length,
        layout=layout.make(mesh_spec.ONE_DEVICE, jax.devices()),
        step=step,
    )


def _base_gaps(
    spec: PreferenceRunSpec, listed: Pairs, fingerprint: dict[str, Any]
) -> np.ndarray | None:
    """What the model before training prefers; None if the run it came from is not there."""
    decoder, directory = Decoder(spec.model), spec.files.start_from
    try:
        base = _open(directory, decoder, spec, step=fingerprint["step"])
    except FileNotFoundError:
        return None
    if base.fingerprint != fingerprint:
        return None
    variables = {"params": base.model.params, "balance": base.model.balance}
    return replies.gaps(decoder, variables, listed, batch_size=2 * spec.pairs.batch_size)


def texts_of(part: Pairs, tokenizer: Tokenizer) -> tuple[list[str], ...]:
    """The dialogues of both sides, read back from their rows."""
    sides = ((part.chosen, part.chosen_lengths), (part.rejected, part.rejected_lengths))
    return tuple(
        [tokenizer.decode(row[1 : length - 1]) for row, length in zip(rows, lengths, strict=True)]
        for rows, lengths in sides
    )


def main(workdir: pathlib.Path, spec: PreferenceRunSpec, step: int | None) -> None:
    """Measures, writes the page and prints it."""
    findings = measure(workdir, spec, step=step)
    policy_plots.reliability(workdir / preference_report.RELIABILITY, findings.bins)
    page.write(
        workdir,
        name="preferences",
        markdown=preference_report.to_markdown(findings) + "\n",
        content=preference_report.to_json(findings),
    )
    console = rich_console.Console()
    text = (workdir / "preferences.md").read_text(encoding="utf-8")
    console.print(rich_markdown.Markdown(text))
    console.print(f"page: {workdir / 'preferences.md'}", soft_wrap=True)


if __name__ == "__main__":
    _DIRECTORY, _STEP = settings.workdir_flag(), settings.step_flag()
    settings.run_app(main, _DIRECTORY, lambda: load_run_spec(_DIRECTORY()), _STEP)
