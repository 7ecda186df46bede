"""The strict format of responses."""

import hypothesis
import hypothesis.strategies as st
import pytest

from deepseek_jax.data.problems import responses

FULL = "<think>1+1=2</think><answer>2</answer>"
PIECES = st.sampled_from([*responses.TAGS, "2", " ", "", "\n", "<", "think>", "</answer"])
TEXTS = st.lists(PIECES, max_size=9).map("".join)


def test_hand_texts():
    assert responses.parse(FULL) == ("1+1=2", "2")
    assert responses.parse("<answer>2</answer>") == (None, "2")
    assert responses.parse("<think></think><answer> 2\n</answer>") == ("", " 2\n")
    assert responses.compose(think="1+1=2", answer="2") == FULL
    assert responses.compose(think=None, answer="2") == "<answer>2</answer>"
    assert responses.has_format(FULL)
    assert responses.has_format("<think></think><answer></answer>")
    assert not responses.has_format("<answer>2</answer>")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        " " + FULL,
        FULL + "\n",
        FULL + "<answer>3</answer>",
        FULL + FULL,
        "<think>a</think> <answer>2</answer>",
        "<think>a</think>",
        "<think>a<answer>2</answer>",
        "a</think><answer>2</answer>",
        "<think>a<think>b</think></think><answer>2</answer>",
        "<think><answer>1</answer></think><answer>2</answer>",
        "<think>a</think><think>b</think><answer>2</answer>",
        "<answer><answer>2</answer></answer>",
        "<answer>2</answer><think>a</think>",
        "<answer>2",
        "2</answer>",
        "<ANSWER>2</ANSWER>",
        "<answer >2</answer>",
    ],
)
def test_no_format(text):
    assert responses.parse(text) is None
    assert not responses.has_format(text)


@hypothesis.given(TEXTS)
def test_only_what_compose_writes_is_read(text):
    response = responses.parse(text)
    if response is not None:
        assert responses.compose(think=response.think, answer=response.answer) == text
    assert responses.has_format(text) == (response is not None and response.think is not None)


@hypothesis.given(st.none() | TEXTS, TEXTS)
def test_what_compose_writes_is_read_back(think, answer):
    if any(tag in part for part in (think or "", answer) for tag in responses.TAGS):
        with pytest.raises(ValueError, match="must hold none of"):
            responses.compose(think=think, answer=answer)
    else:
        text = responses.compose(think=think, answer=answer)
        assert responses.parse(text) == (think, answer)
