"""Problems as arrays: hand numbers, and each row read back."""

import numpy as np
import pytest

from deepseek_jax.data import tokenizers
from deepseek_jax.data.problems import encoded, tasks
from deepseek_jax.data.problems.problem import Problem

TOKENIZER = tokenizers.tagged_bytes_tokenizer()
HAND = [Problem("arithmetic", "1+2=", "3", 1), Problem("arithmetic", "12+9=", "21", 2)]


def encode(problems, *, prompt_width=7, answer_width=3, bos=True):
    return encoded.encode(
        problems, TOKENIZER, prompt_width=prompt_width, answer_width=answer_width, bos=bos
    )


def test_hand_numbers():
    made = encode(HAND)
    # bos is 1, a byte is its value plus 3: "0" is 51, "+" 46, "=" 64.
    want = [[1, 52, 46, 53, 64, 0, 0], [1, 52, 53, 46, 60, 64, 0]]
    np.testing.assert_array_equal(made.prompts, np.array(want, np.int32), strict=True)
    assert made.lengths.tolist() == [5, 6]
    assert made.answers.tolist() == [[54, 0, 0], [53, 52, 0]]
    assert made.answer_lengths.tolist() == [1, 2]
    assert made.num_steps.tolist() == [1, 2]
    assert all(array.dtype == np.int32 for array in made)
    bare = encode(HAND, bos=False)
    assert bare.prompts[0].tolist() == [52, 46, 53, 64, 0, 0, 0]
    assert bare.lengths.tolist() == [4, 5]
    # A width that is just enough.
    assert encode(HAND, prompt_width=6, answer_width=2).prompts.shape == (2, 6)


def test_what_is_too_long_is_named():
    with pytest.raises(ValueError, match=r"prompt_width=5: Problem\(.*12\+9=.* needs 6 tokens"):
        encode(HAND, prompt_width=5)
    with pytest.raises(ValueError, match=r"answer_width=1: Problem\(.*12\+9=.* needs 2 tokens"):
        encode(HAND, answer_width=1)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_rows_are_the_problems(name):
    generator = np.random.default_rng(0)
    problems = [tasks.task(name).draw(generator, size=4) for _ in range(8)]
    made = encode(problems, prompt_width=40, answer_width=12)
    for i, problem in enumerate(problems):
        assert TOKENIZER.decode(made.prompts[i, : made.lengths[i]]) == problem.prompt
        assert TOKENIZER.decode(made.answers[i, : made.answer_lengths[i]]) == problem.answer
        assert (made.prompts[i, made.lengths[i] :] == TOKENIZER.pad_id).all()
    ids = np.array([3, 0, 3], np.int32)
    taken = encoded.take(made, ids)
    again = encode([problems[i] for i in ids.tolist()], prompt_width=40, answer_width=12)
    for one, other in zip(taken, again, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_no_problems():
    made = encode([])
    assert made.prompts.shape == (0, 7) and made.answers.shape == (0, 3)
    assert made.lengths.shape == (0,) and made.lengths.dtype == np.int32
