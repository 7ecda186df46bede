"""The stage on people's preferences: a tiny file whose preferred side can be told."""

import dataclasses
import json
import random

import chex
import numpy as np
import pytest

from deepseek_jax.data import given, tokenizers
from deepseek_jax.reinforcement import pair_stage, preference_stage
from deepseek_jax.training import checkpoint, stage_loop
from deepseek_jax.training.loop import Outcome
from tests.reinforcement import tiny

TOKENIZER = tokenizers.bytes_tokenizer()


def dialogue(question, reply):
    return f"\n\nHuman: {question}\n\nAssistant: {reply}"


def write(path, num_pairs=120, *, extra=()):
    """A file in which the preferred reply says yes, whatever its length."""
    draw = random.Random(3)
    lines = []
    for i in range(num_pairs):
        question = f"{i // 2}?"  # Two pairs of each opening.
        good, bad = ("yes" * draw.randint(1, 3), "no!" * draw.randint(1, 3))
        pair = {"chosen": dialogue(question, good), "rejected": dialogue(question, bad)}
        lines.append(json.dumps(pair))
    for line, pair in extra:
        lines.insert(line - 1, json.dumps(dict(zip(("chosen", "rejected"), pair, strict=True))))
    path.write_text("\n".join(lines) + "\n")
    return path


def spec_of(path, **changes):
    files = {"pairs": str(path)} | changes.pop("files", {})
    return tiny.preference_spec(files=files, **changes)


BLANK = (dialogue("0?", " "), dialogue("0?", "no"))
EQUAL = (dialogue("1?", "no"), dialogue("1?", "no"))
LONG = (dialogue("2?", "yes"), dialogue("2?", "no" * 30))


def test_rows_are_whole_dialogues_and_no_opening_is_on_both_sides(tmp_path):
    path = write(tmp_path / "pairs.jsonl")
    table, facts = preference_stage.load(path, spec_of(path), TOKENIZER)
    assert (len(table.train.chosen), len(table.heldout.chosen)) == (90, 30)
    assert facts["left_out"] == {} and facts["on_both_sides"] == {"openings": 0, "texts": 0}
    assert (facts["num_lines"], facts["num_openings"], facts["num_heldout_openings"]) == (
        120,
        60,
        15,
    )
    assert not set(table.train.problem_ids) & set(table.heldout.problem_ids)
    texts = set()
    for part in table:
        for rows, lengths in ((part.chosen, part.chosen_lengths), part[2:4]):
            for row, length in zip(rows, lengths, strict=True):
                assert (row[0], row[length - 1]) == (TOKENIZER.bos_id, TOKENIZER.eos_id)
                assert not row[length:].any()
                texts.add(TOKENIZER.decode(row[1 : length - 1]))
    pairs = [json.loads(line) for line in path.read_text().splitlines()]
    assert texts == {pair[side] for pair in pairs for side in ("chosen", "rejected")}


def test_a_pair_that_is_too_long_names_its_line(tmp_path):
    path = write(tmp_path / "pairs.jsonl", extra=[(7, LONG)])
    num_tokens = len(LONG[1]) + 2
    message = rf"pairs\.jsonl:7: the longer side needs {num_tokens} tokens of pairs.sequence_len"
    with pytest.raises(ValueError, match=message):
        preference_stage.load(path, spec_of(path), TOKENIZER)


def test_a_row_as_long_as_the_limit_is_taken(tmp_path):
    just = (dialogue("2?", "y" * (62 - len(dialogue("2?", "")))), dialogue("2?", "no"))
    path = write(tmp_path / "pairs.jsonl", extra=[(1, just)])
    table, _ = preference_stage.load(path, spec_of(path), TOKENIZER)
    assert max(part.chosen_lengths.max() for part in table) == 64


def test_what_is_left_out_is_counted_by_its_lines_and_told(tmp_path):
    extra = [(3, BLANK), (5, EQUAL), (9, LONG), (12, LONG)]
    path = write(tmp_path / "pairs.jsonl", extra=extra)
    cares = dict.fromkeys(("blank", "equal", "too_long"), "leave_out")
    material = preference_stage.load(path, spec_of(path, pairs=cares), TOKENIZER)
    assert material.facts["left_out"] == {"blank": [3], "equal": [5], "too_long": [9, 12]}
    assert sum(len(part.chosen) for part in material.table) == 120
    first, second = preference_stage._told(material)
    assert first == (
        "pairs.jsonl: 124 pairs; left out: 1 blank, 1 equal, 2 too_long (lines in record.json)"
    )
    assert "on both sides: 0 openings, 0 dialogues" in second


def test_nothing_to_split_is_refused(tmp_path):
    path = write(tmp_path / "pairs.jsonl", num_pairs=2)
    with pytest.raises(ValueError, match=r"pairs\.jsonl: 2 pairs of 1 dialogue openings"):
        preference_stage.load(path, spec_of(path), TOKENIZER)


def test_no_file_is_refused_before_the_directory_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv(given.FOLDER_VARIABLE, raising=False)
    spec = spec_of(tmp_path / "missing.jsonl")
    for pairs, message in ((spec.files.pairs, "no such file"), (None, "is not set")):
        files = dataclasses.replace(spec.files, pairs=pairs)
        with pytest.raises(FileNotFoundError, match=message):
            preference_stage.train(
                dataclasses.replace(spec, files=files), tmp_path / "run", console=tiny.QUIET
            )
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A base of a few steps, and pairs."""
    directory = tmp_path_factory.mktemp("preferences")
    tiny.write_problems(directory / "problems")
    tiny.train_base(directory / "problems", directory / "base")
    write(directory / "pairs.jsonl")
    return directory


def _train(root, run, path, **changes):
    spec = spec_of(path, files={"start_from": str(root / "base")}, **changes)
    return preference_stage.train(spec, run, console=tiny.QUIET)


@pytest.mark.deep
def test_it_learns_what_can_be_told(root, tmp_path):
    train = {"num_steps": 60, "eval_every": 30, "checkpoint_every": 30}
    outcome = _train(
        root,
        tmp_path,
        root / "pairs.jsonl",
        pairs={"batch_size": 16},
        optimizer={"learning_rate": 2e-2},
        train=train,
    )
    assert outcome == Outcome(60, 60, None)
    lines = tiny.lines(tmp_path)
    assert lines[0]["loss"] == pytest.approx(np.log(2.0), rel=1e-5)
    assert lines[-1]["heldout_pair_accuracy"] > 0.9
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["inputs"]["pairs"]["num_heldout"] == 30
    assert pair_stage.read(tmp_path).heldout.chosen.shape == (30, 64)


@pytest.mark.deep
def test_killed_and_resumed_equals_uninterrupted_and_other_pairs_are_refused(
    root, tmp_path, monkeypatch
):
    run, stages, path = stage_loop.run, [], write(tmp_path / "pairs.jsonl")

    def stopping(stage, *args, **kwargs):
        def advance(state, step):
            if stages[0] is stage and step == 3:
                raise KeyError("killed")
            return stage.advance(state, step)

        stages.append(stage)
        return run(stage._replace(advance=advance), *args, **kwargs)

    monkeypatch.setattr(stage_loop, "run", stopping)
    with pytest.raises(KeyError, match="killed"):
        _train(root, tmp_path / "killed", path)
    write(path, 122)
    with pytest.raises(ValueError, match="the run began with pairs"):
        _train(root, tmp_path / "killed", path)
    write(path)
    assert _train(root, tmp_path / "killed", path) == Outcome(5, 3, None)
    assert _train(root, tmp_path / "whole", path) == Outcome(5, 5, None)
    states = []
    for name in ("killed", "whole"):
        keeper = checkpoint.Checkpoints(tmp_path / name / "checkpoints", keep=9)
        states.append(keeper.restore(stages[0].abstract, step=None).state)
        keeper.close()
    chex.assert_trees_all_equal(*states)
    assert tiny.lines(tmp_path / "killed") == tiny.lines(tmp_path / "whole")
