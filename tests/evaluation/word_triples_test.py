"""Where words end, their contexts, and what is judged."""

import numpy as np

from deepseek_jax.evaluation import word_triples
from deepseek_jax.evaluation.word_triples import Triple

DOCUMENTS = (np.array([5, 1, 2, 9, 1, 2, 3]), np.array([1, 2]), np.array([1]))
CONTINUES = np.arange(10) == 3  # the token 3 goes on with a word


def test_a_word_ends_where_no_letter_follows():
    places = word_triples.find(DOCUMENTS, np.array([1, 2]), CONTINUES)
    assert places == [(0, 3), (1, 2)]  # the one at 4 goes on


def test_contexts_end_with_the_word():
    places = [(0, 3), (1, 2), (0, 6)]
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        rows = word_triples.contexts(DOCUMENTS, places, generator, num=5, span_length=3)
        assert rows.shape == (1, 3)  # document 1 is too short, and document 0 gives one
        seen.add(tuple(rows[0].tolist()))
    assert seen == {(5, 1, 2), (9, 1, 2)}
    none = word_triples.contexts(DOCUMENTS, [], generator, num=5, span_length=3)
    assert none.shape == (0, 3)


def test_what_all_words_share_is_taken_off():
    shared = np.array([0.0, 0.0, 9.0])
    vectors = {"a": shared + [1, 0, 0], "b": shared + [0.5, 0, 0], "c": shared - [1.5, 0, 0]}
    centred = word_triples.centred(vectors)
    (judged,) = word_triples.judge(
        [Triple("a", "b", "c"), Triple("a", "b", "rare")], dict.fromkeys("abc", 7), centred
    )
    assert judged.counts == (7, 7, 7)
    np.testing.assert_allclose([judged.related, judged.unrelated], [1.0, -1.0])
    assert word_triples.centred({}) == {}


def test_the_listed_triples_are_of_three_words_each():
    assert len(set(word_triples.TRIPLES)) == len(word_triples.TRIPLES) >= 40
    assert all(len(set(triple)) == 3 for triple in word_triples.TRIPLES)
