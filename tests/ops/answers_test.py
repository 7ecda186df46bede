"""The verifier of tokens: hand rows, and agreement with the verifier of texts."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.data import tokenizers
from deepseek_jax.data.problems import responses, verify
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.ops import answers

TOKENIZER = tokenizers.tagged_bytes_tokenizer()
IDS = answers.AnswerIds(*tokenizers.tag_ids(TOKENIZER), eos=TOKENIZER.eos_id)
EOS = TOKENIZER.eos_id
NUM_TOKENS = 20  # S
NUM_ANSWER_TOKENS = 5  # A
RIGHT = "<think>5+7</think><answer>12</answer>"

# (text of the response, None where it is cut before its end; answer; right; has the format)
HAND = [
    (RIGHT, "12", True, True),
    ("<answer>12</answer>", "12", True, False),
    ("<think></think><answer>12</answer>", "12", True, True),
    ("<think>5+7</think><answer>13</answer>", "12", False, True),
    ("<answer> 12</answer>", "12", False, False),
    ("<answer>12 </answer>", "12", False, False),
    ("<answer>+12</answer>", "12", False, False),
    ("<answer>012</answer>", "12", False, False),
    ("<answer>1</answer>", "12", False, False),
    ("<answer>12</answer>", "1", False, False),
    ("<answer>12</answer>", "123", False, False),
    ("<answer>12</answer>", "12345", False, False),
    ("<answer></answer>", "12", False, False),
    ("<think>a</think><answer></answer>", "12", False, True),
    ("<answer>-12</answer>", "-12", True, False),
    ("12", "12", False, False),
    ("", "12", False, False),
    (RIGHT + " ", "12", False, False),
    (" " + RIGHT, "12", False, False),
    ("<think>5</think> <answer>12</answer>", "12", False, False),
    ("5<answer>12</answer>", "12", False, False),
    ("<answer>12</answer><answer>12</answer>", "12", False, False),
    ("<answer>13</answer><answer>12</answer>", "12", False, False),
    ("<answer><answer>12</answer>", "12", False, False),
    ("<answer>12</answer></answer>", "12", False, False),
    ("<answer>12", "12", False, False),
    ("12</answer>", "12", False, False),
    ("</answer>12<answer>", "12", False, False),
    ("<think>5<answer>12</answer>", "12", False, False),
    ("5</think><answer>12</answer>", "12", False, False),
    ("</think><answer>12</answer>", "12", False, False),
    ("<think><answer>12</answer>", "12", False, False),
    ("</think><think><answer>12</answer>", "12", False, False),
    ("<think>5</think>6</think><answer>12</answer>", "12", False, False),
    ("<think><think>5</think><answer>12</answer>", "12", False, False),
    ("<think>5</think><think><answer>12</answer>", "12", False, False),
    ("<answer>12</answer><think>5</think>", "12", False, False),
    ("<answer><think>12</answer>", "12", False, False),
    ("<think>5</think><answer><answer>12</answer>", "12", False, False),
    ("<think>5</think><answer>12</think></answer>", "12", False, False),
    ("<think>5</think><answer><think>12</answer>", "12", False, False),
    ("<think>5</think></answer>12<answer>", "12", False, False),
]


def pad(rows, *, width, fill):
    """Rows of equal width, and the length of each."""
    made = np.full((len(rows), width), fill, np.int32)
    for row, ids in zip(made, rows, strict=True):
        row[: len(ids)] = ids
    return jnp.asarray(made), jnp.asarray([len(ids) for ids in rows], jnp.int32)


def arrays(token_rows, right_answers, *, fill=0):
    """The arguments of `is_right`; what is behind a row is `fill`, which the mask hides."""
    tokens, lengths = pad(token_rows, width=NUM_TOKENS, fill=fill)
    mask = jnp.arange(NUM_TOKENS)[None, :] < lengths[:, None]
    encoded = [TOKENIZER.encode(answer).tolist() for answer in right_answers]
    return tokens, mask, *pad(encoded, width=NUM_ANSWER_TOKENS, fill=0)


def judge_text(token_row, answer):
    """What the verifiers of texts say of a row: (right, has the format)."""
    if token_row.count(EOS) != 1 or token_row[-1] != EOS:
        return False, False
    text = TOKENIZER.decode(token_row)
    is_right = verify.exact(Problem("arithmetic", "=", answer, 1), text)
    return is_right, responses.has_format(text)


PIECES = [*responses.TAGS, "1", "2", "12", "-", "+", " ", "0", "\n", "\u00e9", "think>"]


@st.composite
def token_rows(draw):
    """Tokens of a text: pieces anyhow, or a right response with a few pieces put in."""
    if draw(st.booleans()):
        pieces = draw(st.lists(st.sampled_from(PIECES), max_size=9))
    else:
        pieces = draw(
            st.sampled_from(
                [
                    ["<think>", "1", "</think>", "<answer>", "12", "</answer>"],
                    ["<answer>", "12", "</answer>"],
                ]
            )
        ).copy()
        for _ in range(draw(st.integers(0, 2))):
            place = draw(st.integers(0, len(pieces)))
            pieces[place : place + draw(st.integers(0, 1))] = [draw(st.sampled_from(PIECES))]
    ids = TOKENIZER.encode("".join(pieces)).tolist()
    # Complete, cut, ended too early or twice.
    end = draw(st.sampled_from(["eos", "eos", "eos", "cut", "early", "twice"]))
    match end:
        case "eos":
            ids = [*ids, EOS]
        case "early":
            ids.insert(draw(st.integers(0, len(ids))), EOS)
        case "twice":
            ids = [*ids, EOS, EOS]
    return ids[:NUM_TOKENS]


class AnswersTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_hand_rows(self):
        is_right = self.variant(functools.partial(answers.is_right, ids=IDS))
        has_format = self.variant(functools.partial(answers.has_format, ids=IDS))
        texts, right_answers, right, format_ = zip(*HAND, strict=True)
        rows = [[*TOKENIZER.encode(text).tolist(), EOS] for text in texts]
        for fill in (0, EOS, IDS.answer, IDS.end_answer, IDS.think):
            args = arrays(rows, right_answers, fill=fill)
            assert is_right(*args).tolist() == list(right)
            assert has_format(*args[:2]).tolist() == list(format_)
        # Without the end token none is right; the mask then ends with the last token.
        args = arrays([row[:-1] for row in rows], right_answers, fill=EOS)
        assert not is_right(*args).any()
        assert not has_format(*args[:2]).any()

    @chex.variants(with_jit=True, without_jit=True)
    def test_equals_the_verifier_of_texts(self):
        is_right = self.variant(functools.partial(answers.is_right, ids=IDS))
        has_format = self.variant(functools.partial(answers.has_format, ids=IDS))

        @hypothesis.given(
            st.lists(token_rows(), min_size=8, max_size=8),
            st.lists(st.sampled_from(["12", "1", "-12", "1212", "2"]), min_size=8, max_size=8),
            st.sampled_from([0, EOS, IDS.answer, IDS.end_answer]),
        )
        def laws(rows, right_answers, fill):
            # A row cut within a character or before a tag's text ends encodes no text.
            for row in rows:
                text = TOKENIZER.decode(row)
                bare = [i for i in row if i != EOS]
                hypothesis.assume(TOKENIZER.encode(text).tolist() == bare)
            args = arrays(rows, right_answers, fill=fill)
            want = [judge_text(*pair) for pair in zip(rows, right_answers, strict=True)]
            assert is_right(*args).tolist() == [right for right, _ in want]
            assert has_format(*args[:2]).tolist() == [format_ for _, format_ in want]

        laws()


def test_both_words_of_the_law_are_met():
    """The cases of the law hold right and wrong responses, so that it can fail."""
    seen = set()

    @hypothesis.given(token_rows())
    @hypothesis.settings(max_examples=300)
    def collect(row):
        seen.add(judge_text(row, "12"))

    collect()
    assert seen == {(True, True), (True, False), (False, True), (False, False)}


def test_a_response_as_long_as_the_row():
    row = [*TOKENIZER.encode("<think>" + "1" * 13 + "</think><answer>1</answer>").tolist(), EOS]
    assert len(row) == NUM_TOKENS - 1
    longer = [row[0], row[1], *row[1:]]
    args = arrays([longer, longer, [*longer[:-1], 5]], ["1", "12345", "1"])
    assert answers.is_right(*args, ids=IDS).tolist() == [True, False, False]
    assert answers.has_format(*args[:2], ids=IDS).tolist() == [True, True, False]


def test_the_end_token_must_be_the_last_and_the_only_one():
    row = TOKENIZER.encode(RIGHT).tolist()
    rows = [[*row, EOS], [*row, EOS, EOS], [*row, 5], [row[0], EOS, *row[1:]]]
    rows += [[row[0], EOS, *row[1:], 5], [EOS, *row, EOS], [EOS], []]
    args = arrays(rows, ["12"] * len(rows))
    assert answers.is_right(*args, ids=IDS).tolist() == [True] + [False] * 7
    assert answers.has_format(*args[:2], ids=IDS).tolist() == [True] + [False] * 7


def test_special_tokens_and_spelled_tags():
    """Where tokens encode no text: nothing but the right tokens is the right answer."""
    bos, pad_id = TOKENIZER.bos_id, TOKENIZER.pad_id
    spelled = [ord(character) + 3 for character in "<answer>"]
    one, two = TOKENIZER.encode("12").tolist()
    rows = [
        [IDS.answer, one, bos, two, IDS.end_answer, EOS],
        [IDS.answer, one, two, pad_id, IDS.end_answer, EOS],
        [*spelled, one, two, IDS.end_answer, EOS],
        # Text like any other in the think part.
        [IDS.think, *spelled, IDS.end_think, IDS.answer, one, two, IDS.end_answer, EOS],
    ]
    args = arrays(rows, ["12"] * 4)
    assert answers.is_right(*args, ids=IDS).tolist() == [False, False, False, True]


def test_shapes_are_checked():
    tokens, mask, right, lengths = arrays([[EOS]], ["1"])
    with pytest.raises(AssertionError):
        answers.is_right(tokens[0], mask[0], right, lengths, ids=IDS)
    with pytest.raises(AssertionError):
        answers.is_right(tokens, mask[:, :-1], right, lengths, ids=IDS)
    with pytest.raises(AssertionError):
        answers.is_right(tokens, mask.astype(jnp.int32), right, lengths, ids=IDS)
    with pytest.raises(AssertionError):
        answers.is_right(tokens, mask, right[:0], lengths, ids=IDS)
