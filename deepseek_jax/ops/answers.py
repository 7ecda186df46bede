"""Answers: whether sampled tokens are a response, and hold the right answer. Floor 1.

Arrays in, arrays out, so that rewards are computed on the device. A response is, token by
token, [think .. end_think] answer .. end_answer eos, with no other tag anywhere. On tokens that
encode a text this says what `data/problems/responses.py` and `data/problems/verify.py` say of
the text; a tag that is spelled out in tokens of other text is no tag here.

Axes: B sequences, S new tokens, A tokens of padded answers.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class AnswerIds(NamedTuple):
    """Token ids that give a response its form; all differ."""

    think: int
    end_think: int
    answer: int
    end_answer: int
    eos: int


class _Form(NamedTuple):
    """What of the format a row fulfils, and where its answer stands.

    Attributes:
      has_answer: one answer part, then the only end token, then nothing; tags before it aside.
      has_think: one think part, from the first token up to the answer part.
      lacks_think: the answer part comes first, and there is no tag of a think part.
      start: index of the answer's first token.
      length: tokens of the answer.
    """

    has_answer: Bool[Array, " B"]
    has_think: Bool[Array, " B"]
    lacks_think: Bool[Array, " B"]
    start: Int[Array, " B"]
    length: Int[Array, " B"]


def is_right(
    responses: Int[Array, "B S"],
    response_mask: Bool[Array, "B S"],
    answers: Int[Array, "B A"],
    answer_lengths: Int[Array, " B"],
    *,
    ids: AnswerIds,
) -> Bool[Array, " B"]:
    """Whether each response is complete, has the format, and answers exactly the right tokens.

    Args:
      responses: [B, S] sampled tokens.
      response_mask: [B, S] True up to and including the end token; a row that was cut before
        it is True throughout.
      answers: [B, A] the right answers; only the first `answer_lengths` tokens count.
      answer_lengths: [B], at most A.
      ids: static.

    Returns:
      [B] bool; False for what has no end token or no token at all.
    """
    chex.assert_rank([answers, answer_lengths], [2, 1])
    chex.assert_equal_shape_prefix([responses, answers, answer_lengths], 1)
    form = _form(responses, response_mask, ids)
    num_tokens = responses.shape[1]
    places = jnp.arange(answers.shape[1])[None, :]
    # An index beyond the row is clipped; then the lengths differ.
    index = jnp.minimum(form.start[:, None] + places, num_tokens - 1)
    is_same = jnp.take_along_axis(responses, index, axis=1) == answers
    is_same = is_same | (places >= answer_lengths[:, None])
    has_form = form.has_answer & (form.has_think | form.lacks_think)
    return has_form & (form.length == answer_lengths) & jnp.all(is_same, axis=1)


def has_format(
    responses: Int[Array, "B S"], response_mask: Bool[Array, "B S"], *, ids: AnswerIds
) -> Bool[Array, " B"]:
    """Whether each response is exactly a think part, an answer part and the end token.

    Args:
      responses: [B, S] sampled tokens.
      response_mask: [B, S] True up to and including the end token.
      ids: static.
    """
    form = _form(responses, response_mask, ids)
    return form.has_answer & form.has_think


def _form(responses: Int[Array, "B S"], response_mask: Bool[Array, "B S"], ids: AnswerIds) -> _Form:
    """Looks for the tags of each row."""
    chex.assert_rank([responses, response_mask], 2)
    chex.assert_equal_shape([responses, response_mask])
    chex.assert_type([responses, response_mask], [int, bool])
    length = jnp.sum(response_mask, axis=1)

    def find(token_id: int) -> tuple[Bool[Array, "B S"], Int[Array, " B"], Int[Array, " B"]]:
        """Where a token is, how often, and the index of its first place."""
        is_here = (responses == token_id) & response_mask
        return is_here, jnp.sum(is_here, axis=1), jnp.argmax(is_here, axis=1)

    is_think, num_think, _ = find(ids.think)
    _, num_end_think, end_think = find(ids.end_think)
    _, num_answer, answer = find(ids.answer)
    _, num_end_answer, end_answer = find(ids.end_answer)
    _, num_eos, eos = find(ids.eos)
    is_single = (num_answer == 1) & (num_end_answer == 1) & (num_eos == 1)
    return _Form(
        has_answer=is_single & (end_answer == length - 2) & (eos == length - 1),
        has_think=(num_think == 1)
        & is_think[:, 0]
        & (num_end_think == 1)
        & (end_think == answer - 1),
        lacks_think=(num_think == 0) & (num_end_think == 0) & (answer == 0),
        start=answer + 1,
        length=end_answer - answer - 1,
    )
