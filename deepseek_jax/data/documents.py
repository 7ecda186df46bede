"""Documents: the unit of text that is kept, split, ordered and packed. Floor 1."""

import hashlib
from typing import Literal, NamedTuple

Kind = Literal["code", "prose", "text"]

# The index of a kind in this tuple is its id in `rows.Packed.kind_ids`.
KINDS: tuple[Kind, ...] = ("code", "prose", "text")


class Document(NamedTuple):
    """One text and where it came from.

    Attributes:
      name: what it is called in the record, without any path of this machine; unique together
        with `kind`.
      group: documents of one group fall on the same side of the split; the code and the prose
        of one module are a group.
      kind: "code" (sources without docstrings), "prose" (docstrings, documentation) or "text"
        (a user's own).
      text: what a model learns to write.
      prompt: what stands in front of the text and is read, not scored; "" for none.
    """

    name: str
    group: str
    kind: Kind
    text: str
    prompt: str = ""


class Exclusion(NamedTuple):
    """Something that was found and not taken.

    Attributes:
      name: as a document's name.
      reason: one of few words, by which exclusions are counted.
      detail: what exactly is wrong, "" if the reason says it all.
      num_bytes: size of what was left out.
    """

    name: str
    reason: str
    detail: str
    num_bytes: int


def byte_count(document: Document) -> int:
    """Bytes of the text in UTF-8, the denominator of bits per byte; the prompt is none of it."""
    return len(document.text.encode("utf-8"))


def size(document: Document) -> int:
    """Bytes of the prompt and the text in UTF-8: all that is read."""
    return len(document.prompt.encode("utf-8")) + byte_count(document)


def content_digest(document: Document) -> str:
    """SHA-256 of what is read: of the text, or of the hashes of prompt and text."""
    text = digest(document.text)
    return digest(f"{digest(document.prompt)}\0{text}") if document.prompt else text


def digest(text: str) -> str:
    """SHA-256 of a text in hexadecimal; names that are not valid UTF-8 are hashed too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def normalized_digest(text: str) -> str:
    """SHA-256 of a text without regard to line ends and blanks at the ends of lines."""
    return digest("\n".join(line.rstrip() for line in text.splitlines()).strip())
