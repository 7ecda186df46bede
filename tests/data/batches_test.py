"""Laws of batches: every row once an epoch, exact resumption, evaluation covers all."""

import itertools
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.data import batches
from deepseek_jax.data.rows import Rows

NAMES = {"tokens", "targets", "target_mask", "document_ids", "positions"}
few = hypothesis.settings(max_examples=15)


def numbered_rows(num_rows, length=3):
    tokens = np.repeat(np.arange(num_rows, dtype=np.int32)[:, None], length, axis=1)
    return Rows(tokens, tokens + 1, np.ones(tokens.shape, bool), np.ones_like(tokens), tokens * 0)


def row_numbers(iterator, num_batches):
    taken = itertools.islice(iterator, num_batches)
    return [batch["tokens"][:, 0].tolist() for batch in taken]


@few
@hypothesis.given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
@pytest.mark.deep
def test_every_epoch_has_every_row_once(num_rows, batch_size, seed):
    iterator = batches.TrainBatches(numbered_rows(num_rows), batch_size=batch_size, seed=seed)
    # As many batches as rows: batch_size whole epochs.
    stream = sum(row_numbers(iterator, num_rows), [])
    for epoch in range(batch_size):
        part = stream[epoch * num_rows : (epoch + 1) * num_rows]
        assert sorted(part) == list(range(num_rows))


def test_epochs_and_seeds_have_orders_of_their_own():
    def stream(seed):
        iterator = batches.TrainBatches(numbered_rows(30), batch_size=10, seed=seed)
        return sum(row_numbers(iterator, 6), [])

    one = stream(0)
    assert one[:30] != one[30:]
    assert one[:30] != list(range(30))
    assert one == stream(0)
    assert one != stream(1)


@hypothesis.settings(max_examples=8)  # Starting an iterator's threads takes a while.
@hypothesis.given(st.integers(0, 11), st.integers(0, 11))
def test_resumption_is_exact(num_before, num_after):
    rows = numbered_rows(7)
    straight = batches.TrainBatches(rows, batch_size=3, seed=5)
    expected = row_numbers(straight, num_before + 4)[num_before:]
    first = batches.TrainBatches(rows, batch_size=3, seed=5)
    row_numbers(first, num_before)
    state = json.dumps(first.get_state())
    # Neither what the old one does next nor where the new one stood matters.
    row_numbers(first, num_after)
    second = batches.TrainBatches(rows, batch_size=3, seed=5)
    row_numbers(second, num_after)
    second.set_state(json.loads(state))
    assert row_numbers(second, 4) == expected


def test_batch_holds_the_arrays_of_its_rows():
    rows = numbered_rows(4)
    batch = next(batches.TrainBatches(rows, batch_size=2, seed=0))
    assert set(batch) == NAMES
    for name, array in batch.items():
        source = rows._asdict()[name]
        assert (array.dtype, array.shape) == (source.dtype, (2, 3))
        np.testing.assert_array_equal(array, source[batch["tokens"][:, 0]])


def test_state_of_another_run_is_refused():
    state = batches.TrainBatches(numbered_rows(4), batch_size=2, seed=0).get_state()
    other = batches.TrainBatches(numbered_rows(4), batch_size=3, seed=0)
    with pytest.raises(ValueError, match="saved with batch_size=2, this run has batch_size=3"):
        other.set_state(state)
    more = batches.TrainBatches(numbered_rows(5), batch_size=2, seed=0)
    with pytest.raises(ValueError, match="num_rows=4"):
        more.set_state(state)
    for broken in ({}, {**state, "position": {}}, {**state, "position": {"next_index": "1"}}):
        same = batches.TrainBatches(numbered_rows(4), batch_size=2, seed=0)
        with pytest.raises(ValueError, match="not a data position"):
            same.set_state(broken)


@hypothesis.given(st.integers(1, 9), st.integers(1, 5))
def test_evaluation_covers_every_row_once(num_rows, batch_size):
    rows = numbered_rows(num_rows)
    parts = list(batches.eval_batches(rows, batch_size=batch_size))
    assert len(parts) == -(-num_rows // batch_size)
    for batch in parts:
        assert set(batch) == NAMES
        assert all(array.shape == (batch_size, 3) for array in batch.values())
    for name, source in rows._asdict().items():
        whole = np.concatenate([batch[name] for batch in parts])
        assert whole.dtype == source.dtype
        np.testing.assert_array_equal(whole[:num_rows], source)
        assert not whole[num_rows:].any()


@pytest.mark.parametrize(
    ("num_rows", "settings", "message"),
    [
        (0, {"batch_size": 1, "seed": 0}, "no rows"),
        (1, {"batch_size": 0, "seed": 0}, "batch_size=0"),
        (1, {"batch_size": 1, "seed": -1}, "seed=-1"),
        (1, {"batch_size": 1, "seed": 2**32}, "seed=4294967296"),
    ],
)
def test_bad_settings(num_rows, settings, message):
    with pytest.raises(ValueError, match=message):
        batches.TrainBatches(numbered_rows(num_rows), **settings)


def test_bad_evaluation_batch_size():
    with pytest.raises(ValueError, match="batch_size=0"):
        next(batches.eval_batches(numbered_rows(2), batch_size=0))
