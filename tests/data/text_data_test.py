"""The whole floor: from settings to rows, and what a run that goes on relies on."""

import json

import numpy as np
import pytest

from deepseek_jax.core.run_spec import DataSpec
from deepseek_jax.data import documents, rows, text_data, tokenizers

SETTINGS = dict(
    source="folder",
    path=None,
    field=None,
    prompt_field=None,
    max_bytes=None,
    tokenizer="bytes",
    tokenizer_path=None,
    bpe_vocab_size=None,
    heldout_fraction=0.25,
    sequence_length=16,
)

# More than enough for the 41 merges of a vocabulary of 300.
WORDS = "the house of many rooms stands behind seventeen green apple trees near water".split()


def spec(**changes):
    return DataSpec(**{**SETTINGS, **changes})


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "texts"
    path.mkdir()
    for i in range(8):
        words = " ".join(f"{word} caf\u00e9{i}" for word in WORDS)
        (path / f"{i}.txt").write_text(f"{words} " * (i + 1), "utf-8")
    return path


def equal(one, other):
    for a, b in zip((*one.train, *one.heldout), (*other.train, *other.heldout), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.record == other.record
    assert one.tokenizer.sha256 == other.tokenizer.sha256


def text_of(data):
    mask = data.heldout.target_mask
    return data.tokenizer.decode(data.heldout.targets[mask])


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": "bytes"},
        {"tokenizer": "tagged_bytes"},
        {"tokenizer": "bpe", "bpe_vocab_size": 300},
    ],
)
def test_folder(folder, changes, tmp_path):
    settings = spec(path=str(folder), **changes)
    data = text_data.load(settings, seed=3)
    assert (
        data.tokenizer.vocab_size
        == {"bytes": 259, "tagged_bytes": 263, "bpe": 300}[changes["tokenizer"]]
    )
    assert len(data.heldout_documents) == 2
    assert text_of(data) == "".join(document.text for document in data.heldout_documents)
    size = sum(map(documents.byte_count, data.heldout_documents))
    assert rows.target_bytes(data.heldout, data.tokenizer.token_byte_lengths) == size
    assert data.heldout_kind_ids.shape == data.heldout.tokens.shape
    assert set(data.heldout_kind_ids[data.heldout.target_mask]) == {documents.KINDS.index("text")}
    equal(data, text_data.load(settings, seed=3))
    # A run that goes on uses the tokenizer it was started with.
    data.tokenizer.save(tmp_path / "tokenizer.json")
    again = text_data.load(settings, seed=3, tokenizer_path=str(tmp_path / "tokenizer.json"))
    equal(data, again)
    # The place does not matter.
    moved = folder.rename(tmp_path / "elsewhere")
    equal(data, text_data.load(spec(path=str(moved), **changes), seed=3))


def test_seed_moves_rows_and_not_the_split(folder):
    one = text_data.load(spec(path=str(folder)), seed=0)
    other = text_data.load(spec(path=str(folder)), seed=1)
    assert one.record == other.record
    assert one.train.tokens.tolist() != other.train.tokens.tolist()


def test_given_tokenizer_wins_over_training(folder, tmp_path):
    tokenizers.bytes_tokenizer().save(tmp_path / "t.json")
    settings = spec(path=str(folder), tokenizer="bpe", bpe_vocab_size=300)
    data = text_data.load(settings, seed=0, tokenizer_path=str(tmp_path / "t.json"))
    assert data.tokenizer.vocab_size == 259
    by_file = spec(path=str(folder), tokenizer="file", tokenizer_path=str(tmp_path / "t.json"))
    equal(data, text_data.load(by_file, seed=0))


def test_heldout_text_does_not_train_the_tokenizer(folder):
    settings = spec(path=str(folder), tokenizer="bpe", bpe_vocab_size=300)
    data = text_data.load(settings, seed=0)
    held = data.heldout_documents[0].name
    text = (folder / held).read_text("utf-8")
    (folder / held).write_text(text + "zyzzyva " * 100, "utf-8")
    changed = text_data.load(settings, seed=0)
    assert changed.heldout_documents != data.heldout_documents
    assert changed.tokenizer.sha256 == data.tokenizer.sha256


def test_jsonl(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(f'{{"q": "question {i}"}}' for i in range(20)), "utf-8")
    data = text_data.load(spec(source="jsonl", path=str(path), field="q"), seed=0)
    assert len(data.heldout_documents) == 5
    # The place does not matter: the same rows in the same order.
    moved = tmp_path / "else" / "where" / "q.jsonl"
    moved.parent.mkdir(parents=True)
    path.rename(moved)
    equal(data, text_data.load(spec(source="jsonl", path=str(moved), field="q"), seed=0))


@pytest.mark.parametrize("changes", [{}, {"tokenizer": "bpe", "bpe_vocab_size": 300}])
def test_jsonl_with_prompts(tmp_path, changes):
    path = tmp_path / "q.jsonl"
    lines = [
        {"q": f"What is {word} in {i}? ", "a": " ".join(WORDS[i % 9 :])}
        for i, word in enumerate(WORDS * 3)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    asked = spec(source="jsonl", path=str(path), field="a", prompt_field="q", **changes)
    data = text_data.load(asked, seed=0)
    # No two of them are equal, though texts are; bits per byte are of the texts alone.
    assert data.record.excluded == {}
    assert text_of(data) == "".join(document.text for document in data.heldout_documents)
    size = sum(map(documents.byte_count, data.heldout_documents))
    assert rows.target_bytes(data.heldout, data.tokenizer.token_byte_lengths) == size
    is_text = data.heldout.document_ids > 0
    prompts = sum(
        len(data.tokenizer.encode(document.prompt)) for document in data.heldout_documents
    )
    assert (is_text & ~data.heldout.target_mask).sum() == prompts > 0


def test_corpus_shorter_than_a_row(folder):
    with pytest.raises(ValueError, match="data.sequence_length=100000: the training text has only"):
        text_data.load(spec(path=str(folder), sequence_length=100_000), seed=0)


def test_corpus_of_exactly_one_row(tmp_path):
    # Three different texts of 7 bytes and EOS: 2 to train on are 16 inputs.
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"text {i}\n", "utf-8")
    data = text_data.load(spec(path=str(tmp_path), sequence_length=16), seed=0)
    assert rows.num_rows(data.train) == 1
    with pytest.raises(ValueError, match="only 16 tokens"):
        text_data.load(spec(path=str(tmp_path), sequence_length=17), seed=0)


@pytest.mark.deep
def test_standard_library_within_a_limit():
    limited = spec(
        source="stdlib", max_bytes=300_000, tokenizer="bpe", bpe_vocab_size=300, sequence_length=64
    )
    data = text_data.load(limited, seed=0)
    kept = data.record.kept
    assert {"train/code", "train/prose"} <= set(kept)
    assert sum(count.num_bytes for count in kept.values()) >= 300_000
    assert data.record.excluded["test"].num_documents > 0
    assert data.record.excluded["max_bytes"].num_bytes > 1_000_000
    assert not any(
        "/test" in entry.name or entry.name.startswith("/") for entry in data.record.files
    )
