"""The format of a response: <think>steps</think><answer>answer</answer>. Floor 1.

arXiv:2501.12948, table 1. The think part may be left out; nothing else may be there.
"""

import re
from typing import NamedTuple

THINK = "<think>"
END_THINK = "</think>"
ANSWER = "<answer>"
END_ANSWER = "</answer>"
TAGS = (THINK, END_THINK, ANSWER, END_ANSWER)

_TAG = re.compile("(" + "|".join(TAGS) + ")")


class Response(NamedTuple):
    """What stands between the tags.

    Attributes:
      think: the steps, possibly ""; None if there is no think part.
      answer: the answer, possibly "", with all its blanks.
    """

    think: str | None
    answer: str


def compose(*, think: str | None, answer: str) -> str:
    """The text of a response; `parse` gives its parts back.

    Args:
      think: the steps; None leaves the think part out.
      answer: the answer.

    Raises:
      ValueError: a part holds a tag.
    """
    for part in (think or "", answer):
        if _TAG.search(part):
            raise ValueError(f"{part!r}: a part of a response must hold none of {list(TAGS)}")
    front = "" if think is None else f"{THINK}{think}{END_THINK}"
    return f"{front}{ANSWER}{answer}{END_ANSWER}"


def parse(text: str) -> Response | None:
    """The parts of a response, None unless the whole text has the format.

    Text before, between or behind the parts, a second answer, a tag within a part and the end
    of a text that was cut are no format; nothing is stripped.
    """
    match _TAG.split(text):
        case ["", "<think>", think, "</think>", "", "<answer>", answer, "</answer>", ""]:
            return Response(think, answer)
        case ["", "<answer>", answer, "</answer>", ""]:
            return Response(None, answer)
        case _:
            return None


def has_format(text: str) -> bool:
    """Whether the text is exactly a think part and an answer part."""
    response = parse(text)
    return response is not None and response.think is not None
