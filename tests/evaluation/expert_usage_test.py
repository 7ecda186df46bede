"""Mutual information of known tables, and the shuffles it is held against."""

import numpy as np
import pytest

from deepseek_jax.evaluation import expert_usage
from deepseek_jax.evaluation.expert_usage import ExpertCounts
from tests import tolerances
from tests.evaluation import heldout_test


def information(table):
    return expert_usage.mutual_information(np.array(table, np.float64))


def test_mutual_information_of_known_tables():
    # The identity tells everything: 1 bit. Independence tells nothing, whatever the margins.
    tables = [[[4, 0], [0, 4]], [[1, 1], [1, 1]], [[1, 3], [2, 6]]]
    np.testing.assert_allclose(information(tables), [1.0, 0.0, 0.0], **tolerances.OP_F32)
    # Four experts, two kinds, each kind with experts of its own: still 1 bit.
    np.testing.assert_allclose(information([[1, 1, 0, 0], [0, 0, 1, 1]]), 1.0, **tolerances.OP_F32)
    # (1/2, 1/4; 0, 1/4): H(rows) = 0.8113, H(columns) = 1, joint 1.5.
    np.testing.assert_allclose(
        information([[2, 1], [0, 1]]), 0.8112781 + 1.0 - 1.5, **tolerances.OP_F32
    )


def usage_of(counts, kind_ids):
    return ExpertCounts(np.array(counts, np.int64), np.array(kind_ids, np.int8))


def information_of(usage, *, seed):
    found = expert_usage.kind_information(usage, seed=seed)
    assert found is not None
    return found


def test_experts_of_their_own_are_found():
    kinds = [0, 1] * 10
    counts = [[[5 * (1 - kind), 5 * kind] for kind in kinds], [[5, 5]] * 20]
    found = information_of(usage_of(counts, kinds), seed=0)
    np.testing.assert_allclose(found.bits, [1.0, 0.0], **tolerances.OP_F32)
    assert found.kind_entropy == 1.0
    assert found.p_values[0] == 1 / (1 + expert_usage.NUM_SHUFFLES)
    assert found.p_values[1] == 1.0
    assert 0.0 < found.shuffled_mean[0] < found.shuffled_quantile[0] < 1.0


def test_documents_of_one_mind_are_not_evidence():
    # Each document has an expert of its own, whatever its kind. Shuffling tokens would call
    # that a discovery every time; shuffling documents must not.
    generator = np.random.default_rng(0)
    found_by_chance, total = 0, 0.0
    for seed in range(40):
        kinds = generator.permutation([0, 1] * 8)
        counts = np.zeros((1, 16, 4), np.int64)
        counts[0, np.arange(16), generator.integers(0, 4, size=16)] = 500
        found = information_of(usage_of(counts, kinds), seed=seed)
        total += found.bits[0]
        found_by_chance += found.p_values[0] <= 0.05
    assert total / 40 > 0.05
    assert found_by_chance <= 6


def test_the_entropy_of_kinds_is_by_assignment():
    # 6 assignments of one kind and 2 of the other.
    found = information_of(usage_of([[[3, 3], [1, 1]]], [0, 1]), seed=0)
    np.testing.assert_allclose(found.kind_entropy, 0.8112781, **tolerances.OP_F32)


def test_swapped_kinds_count_as_much():
    # Two documents: every shuffle has the measured information.
    found = information_of(usage_of([[[9, 1], [2, 7]]], [0, 1]), seed=0)
    assert found.p_values.tolist() == [1.0]


def test_chunks_of_shuffles_make_them_all(monkeypatch):
    kinds = [0, 1, 1, 0, 1]
    usage = usage_of(np.random.default_rng(0).integers(1, 9, size=(2, 5, 3)), kinds)
    whole = information_of(usage, seed=0)
    monkeypatch.setattr(expert_usage, "_CHUNK_ENTRIES", 17 * 300)
    parts = information_of(usage, seed=0)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, **tolerances.OP_F32)


def test_kinds_that_do_not_occur_have_no_say():
    # "code" and "text", without "prose" between them.
    usage = usage_of([[[4, 0], [0, 4]]], [0, 2])
    np.testing.assert_allclose(information_of(usage, seed=0).bits, 1.0, **tolerances.OP_F32)
    loads = expert_usage.load_by_kind(usage)
    assert {kind: load.tolist() for kind, load in loads.items()} == {
        "code": [[4, 0]],
        "text": [[0, 4]],
    }
    assert expert_usage.load(usage).tolist() == [[4, 4]]


def test_one_kind_has_nothing_to_tell_apart():
    assert expert_usage.kind_information(usage_of([[[4, 0], [0, 4]]], [2, 2]), seed=0) is None


def expert_ids_of(batch):
    """Layer 0: token mod 3 and the next expert; layer 1: experts 3 and 4 for all."""
    tokens = np.asarray(batch["tokens"])
    first = np.stack([tokens % 3, (tokens + 1) % 3], axis=-1)
    return np.stack([first, np.broadcast_to([3, 4], first.shape)])


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_every_token_is_counted_once_and_padding_never(batch_size):
    made = heldout_test.heldout_set()
    usage = expert_usage.count(expert_ids_of, made, num_experts=5, batch_size=batch_size)
    expected = np.zeros((2, 4, 5), np.int64)
    for token, document in zip(made.rows.tokens.ravel(), made.document_index.ravel(), strict=True):
        if document >= 0:
            expected[0, document, [token % 3, (token + 1) % 3]] += 1
            expected[1, document, [3, 4]] += 1
    np.testing.assert_array_equal(usage.counts, expected)
    assert usage.counts.sum() == 2 * 2 * made.num_targets.sum()
    assert usage.kind_ids.tolist() == [0, 1, 0, 1]


def test_an_expert_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"not in \[0, 4\)"):
        expert_usage.count(expert_ids_of, heldout_test.heldout_set(), num_experts=4, batch_size=6)
