"""The bigram by hand, and its laws."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.evaluation import bigram
from deepseek_jax.evaluation.byte_stream import Pairs
from tests import tolerances


def pairs_of(symbols):
    symbols = np.array(symbols, np.int32)
    return Pairs(symbols[:-1], symbols[1:])


def every_pair(num_symbols):
    contexts, targets = np.divmod(np.arange(num_symbols**2, dtype=np.int32), num_symbols)
    return Pairs(contexts, targets)


def table(model):
    return model.probs(every_pair(model.num_symbols)).reshape(2 * (model.num_symbols,))


def test_by_hand():
    # 0 1 0 1 0 2: c(0,1) = 2, c(0,2) = 1, c(1,0) = 2; d = 1/2.
    # Histories: N(.,0) = N(.,1) = N(.,2) = 1, so P(w) = (1/2 + 1/2 * 3 / 3) / 3 = 1/3.
    # P(1|0) = (3/2 + 1/2 * 2 * 1/3) / 3 = 11/18; P(2|0) = (1/2 + 1/3) / 3 = 5/18;
    # P(0|0) = 1/3 / 3 = 2/18. P(0|1) = (3/2 + 1/6) / 2 = 5/6, the others 1/12.
    # Nothing follows 2: P(w|2) = 1/3.
    model = bigram.from_pairs(pairs_of([0, 1, 0, 1, 0, 2]), num_symbols=3, discount=0.5)
    expected = [[2 / 18, 11 / 18, 5 / 18], [5 / 6, 1 / 12, 1 / 12], [1 / 3, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(table(model), expected, **tolerances.OP_F32)


def test_the_lower_order_counts_contexts_not_occurrences():
    # 2 stands three times behind 1 and nowhere else; 0 once behind each of 1 and 3.
    pairs = Pairs(np.array([1, 1, 1, 1, 3], np.int32), np.array([2, 2, 2, 0, 0], np.int32))
    model = bigram.from_pairs(pairs, num_symbols=4, discount=0.5)
    # N(.,0) = 2, N(.,2) = 1: (3/2 + 1/4) / 3 and (1/2 + 1/4) / 3, never seen 1/4 / 3.
    expected = [7 / 12, 1 / 12, 3 / 12, 1 / 12]
    np.testing.assert_allclose(model.lower_probs, expected, **tolerances.OP_F32)


def test_terms_are_nats():
    model = bigram.from_pairs(pairs_of([0, 1, 0, 1, 0, 2]), num_symbols=3, discount=0.5)
    terms = model.terms(pairs_of([0, 1, 2]))
    np.testing.assert_allclose(terms, [math.log(18 / 11), math.log(12)], **tolerances.OP_F32)


@hypothesis.given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=2, max_size=40))
    ),
    st.floats(0.01, 0.99),
    st.booleans(),
)
def test_probabilities_sum_to_one_in_every_context(case, discount, sparse):
    num_symbols, symbols = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigram, "_DENSE_SYMBOLS", 0 if sparse else 1024)
        model = bigram.from_pairs(pairs_of(symbols), num_symbols=num_symbols, discount=discount)
    probs = table(model)
    assert probs.min() > 0.0
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, **tolerances.OP_F32)
    np.testing.assert_allclose(model.lower_probs.sum(), 1.0, **tolerances.OP_F32)


@hypothesis.given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.integers(1, 7))
def test_counting_ways_agree(symbols, chunk):
    pairs = pairs_of(symbols)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigram, "_CHUNK_PAIRS", chunk)
        dense = bigram._counted(pairs, num_symbols=5)
        patch.setattr(bigram, "_DENSE_SYMBOLS", 0)
        sparse = bigram._counted(pairs, num_symbols=5)
    np.testing.assert_array_equal(dense[0], sparse[0])
    np.testing.assert_array_equal(dense[1], sparse[1])


def markov_chain(*, length, seed):
    generator = np.random.default_rng(seed)
    transitions = np.random.default_rng(0).dirichlet(np.full(6, 0.3), size=6)
    symbols = [0]
    for _ in range(length):
        symbols.append(int(generator.choice(6, p=transitions[symbols[-1]])))
    return pairs_of(symbols), transitions


def test_it_comes_close_to_the_source_it_learned_from():
    train, transitions = markov_chain(length=8000, seed=1)
    heldout, _ = markov_chain(length=2000, seed=2)
    entropy = -np.log(transitions[heldout.contexts, heldout.targets]).mean()
    loss = bigram.fit(train, num_symbols=6).terms(heldout).mean()
    assert entropy <= loss + 0.01
    assert loss < entropy + 0.02


def test_the_discount_is_the_one_that_predicts_the_tail_best():
    # The tail is a pair the head has never seen: the more is backed off, the better.
    symbols = [0, 1] * 20 + [0, 2, 0, 2, 0, 2]
    novel = bigram.fit(Pairs(*(a[:42] for a in pairs_of(symbols))), num_symbols=3)
    steady = bigram.fit(pairs_of([0, 1] * 20), num_symbols=3)
    assert novel.discount == max(bigram.DISCOUNTS)
    assert steady.discount == min(bigram.DISCOUNTS)


def test_the_model_is_made_from_all_pairs():
    pairs = pairs_of([0, 1] * 20 + [2])
    model = bigram.fit(pairs, num_symbols=3)
    whole = bigram.from_pairs(pairs, num_symbols=3, discount=model.discount)
    np.testing.assert_array_equal(table(model), table(whole))


@pytest.mark.parametrize("symbols", [[0, 3], [-1, 0]])
def test_symbols_outside_are_refused(symbols):
    with pytest.raises(ValueError, match="outside the 3 symbols"):
        bigram.from_pairs(pairs_of(symbols), num_symbols=3, discount=0.5)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 2 training pairs, got 1"):
        bigram.fit(pairs_of([0, 1]), num_symbols=3)
    with pytest.raises(ValueError, match="at least 1"):
        bigram.from_pairs(pairs_of([0]), num_symbols=3, discount=0.5)
    with pytest.raises(ValueError, match="discount=1.0"):
        bigram.from_pairs(pairs_of([0, 1]), num_symbols=3, discount=1.0)
