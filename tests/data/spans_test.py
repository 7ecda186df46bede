"""Two spans of a document never overlap, lie everywhere, and come back alike."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.core.run_spec import DataSpec
from deepseek_jax.data import corpus as corpus_lib
from deepseek_jax.data import sources, spans
from deepseek_jax.data.documents import Document

LENGTH = 4


def _spec(path, **changes):
    fields = {
        "source": "folder",
        "path": str(path),
        "field": None,
        "prompt_field": None,
        "max_bytes": None,
        "tokenizer": "bytes",
        "tokenizer_path": None,
        "bpe_vocab_size": None,
        "heldout_fraction": 0.25,
        "sequence_length": LENGTH,
    }
    return DataSpec(**(fields | changes))


@pytest.fixture
def folder(tmp_path):
    """Documents that are all of one letter, so that a span tells whose it is."""
    for number, letter in enumerate("abcdefghijkl"):
        (tmp_path / f"{letter}.txt").write_text(letter * (2 * LENGTH - 1 + number))
    return tmp_path


@hypothesis.given(st.lists(st.integers(2 * LENGTH, 40), min_size=1, max_size=5), st.integers(0, 99))
def test_spans_fit_and_never_overlap(lengths, seed):
    lengths = np.array(lengths)
    starts = spans.span_starts(lengths, np.random.default_rng(seed), span_length=LENGTH)
    assert (starts >= 0).all() and (starts + LENGTH <= lengths[:, None]).all()
    assert (np.abs(starts[:, 0] - starts[:, 1]) >= LENGTH).all()


def test_every_place_is_equally_likely():
    # 10 tokens, two spans of 4: starts (0, 4), (0, 5), (0, 6), (1, 5), (1, 6), (2, 6), swapped.
    lengths = np.full(24_000, 10)
    starts = spans.span_starts(lengths, np.random.default_rng(0), span_length=4)
    counts = collections.Counter(map(tuple, starts.tolist()))
    assert len(counts) == 12
    assert all(abs(count - 2_000) < 250 for count in counts.values())


def test_a_document_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="documents of 7 tokens have no two spans of 4"):
        spans.span_starts(np.array([9, 7]), np.random.default_rng(0), span_length=4)


def test_short_documents_are_counted_and_sides_are_apart(folder):
    data = spans.load(_spec(folder), tokenizer_path=None)
    sides = (data.train, data.heldout)
    assert sum(len(side.token_ids) for side in sides) == 11
    assert sum(side.num_short for side in sides) == 1  # the a's
    assert not set(data.train.names) & set(data.heldout.names)
    for side in sides:
        assert len(set(side.groups.tolist())) == len(side.token_ids)


def test_a_corpus_that_was_read_before_gives_the_same(folder):
    spec = _spec(folder)
    corpus = corpus_lib.build(
        sources.read_folder(str(folder)), source="folder", max_bytes=None, heldout_fraction=0.25
    )
    given = spans.of_corpus(corpus, spec, tokenizer_path=None)
    loaded = spans.load(spec, tokenizer_path=None)
    assert given.record == loaded.record
    assert given.tokenizer.sha256 == loaded.tokenizer.sha256
    for one, other in ((given.train, loaded.train), (given.heldout, loaded.heldout)):
        assert one.names == other.names
        for first, second in zip(one.token_ids, other.token_ids, strict=True):
            np.testing.assert_array_equal(first, second)


def test_batches_are_of_one_document_each_and_know_their_step(folder):
    data = spans.load(_spec(folder), tokenizer_path=None)
    size = len(data.train.token_ids)

    def batch(step, seed=0):
        return spans.batch(data.train, step=step, batch_size=size, span_length=LENGTH, seed=seed)

    taken = batch(0)
    assert taken.first.shape == taken.second.shape == (size, LENGTH)
    assert (taken.first == taken.second).all()  # one letter a document
    assert len({row[0] for row in taken.first.tolist()}) == size  # an epoch has each once
    for again in zip(taken, batch(0), strict=True):
        np.testing.assert_array_equal(*again)
    assert (batch(1).first != taken.first).any()
    assert (batch(0, seed=1).first != taken.first).any()


def test_every_step_draws_places_anew():
    whole = (np.arange(40, dtype=np.int32),)
    documents = spans.SpanDocuments(whole, np.zeros(1, np.int32), ("text",), ("a",), 0)
    taken = [
        spans.batch(documents, step=step, batch_size=1, span_length=LENGTH, seed=0)
        for step in range(8)
    ]
    assert len({(int(pair.first[0, 0]), int(pair.second[0, 0])) for pair in taken}) > 4


def test_code_and_prose_of_a_module_are_one_group(monkeypatch):
    found = sources.Found(
        [
            Document(f"{kind}{number}", f"module{number}", kind, f"{kind}{number} " * 4)
            for number in range(4)
            for kind in ("code", "prose")
        ],
        [],
    )
    monkeypatch.setattr(spans.corpus_lib, "read", lambda _: found)
    data = spans.load(_spec("any"), tokenizer_path=None)
    for side in (data.train, data.heldout):
        numbers = [name[-1] for name in side.names]
        assert len(side.names) == 2 * len(set(numbers))
        same = np.array(numbers)[:, None] == np.array(numbers)[None]
        np.testing.assert_array_equal(side.groups[:, None] == side.groups[None], same)


def test_a_side_without_spans_is_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 5)
    with pytest.raises(ValueError, match="none of the 1 documents of the side 'train' has two"):
        spans.load(_spec(tmp_path), tokenizer_path=None)
