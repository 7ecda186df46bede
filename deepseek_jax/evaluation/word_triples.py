"""The article's example as a probe: is a word nearer to a related one than to another? Floor 5.

"Apple" near "fruit", far from "company": here with words that sources of programs hold often.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32, Int64


class Triple(NamedTuple):
    """A word, one that it is related to, and one that it is not."""

    word: str
    related: str
    unrelated: str


class Judged(NamedTuple):
    """A triple with the counts of its words, and the cosines of the word to the other two."""

    triple: Triple
    counts: tuple[int, int, int]
    related: float
    unrelated: float


TRIPLES = tuple(
    Triple(*line.split())
    for line in """
list tuple socket
integer float thread
string bytes process
file directory exception
directory path matrix
socket connection integer
server client column
client server digit
thread process string
process thread column
lock thread path
exception error socket
error exception matrix
key value thread
dictionary key socket
row column server
column row exception
array matrix client
matrix array socket
month day buffer
year month module
hour minute class
minute second package
date time tuple
module package month
package module row
class method minute
method class hour
function argument directory
argument parameter host
parameter argument month
parser token day
token parser host
encoding bytes lock
buffer bytes year
request response column
response request row
host port list
port host tuple
header message matrix
test assert port
index array host
shape array client
tensor gradient socket
gradient tensor header
""".strip().split("\n")
)


def find(
    documents: Sequence[Int32[np.ndarray, " _"]],
    word_ids: Int32[np.ndarray, " W"],
    continues: np.ndarray,
) -> list[tuple[int, int]]:
    """Where a word ends: (document, place behind its last token), in order.

    Args:
      documents: token ids.
      word_ids: of the word, the blank before it included.
      continues: [V] bool, whether a token goes on with a word: then it was a longer one.
    """
    width = len(word_ids)
    found = []
    for number, ids in enumerate(documents):
        starts = np.flatnonzero(ids[: len(ids) - width + 1] == word_ids[0])
        for start in starts.tolist():
            end = start + width
            if np.array_equal(ids[start:end], word_ids) and (
                end == len(ids) or not continues[ids[end]]
            ):
                found.append((number, end))
    return found


def contexts(
    documents: Sequence[Int32[np.ndarray, " _"]],
    places: Sequence[tuple[int, int]],
    generator: np.random.Generator,
    *,
    num: int,
    span_length: int,
) -> Int64[np.ndarray, "num L"]:
    """Spans that end with a word and have enough before it, at most one a document.

    Args:
      documents: token ids.
      places: of `find`.
      generator: draws.
      num: how many at most.
      span_length: L.
    """
    enough = [place for place in places if place[1] >= span_length]
    # A dict keeps one place of each document, the last of a random order.
    mixed = dict(enough[i] for i in generator.permutation(len(enough)))
    chosen = sorted(mixed.items())
    kept = generator.permutation(len(chosen))[:num]
    rows = [
        documents[number][end - span_length : end]
        for number, end in (chosen[i] for i in sorted(kept.tolist()))
    ]
    return np.array(rows, np.int64).reshape(len(rows), span_length)


def centred(vectors: dict[str, Float[np.ndarray, " P"]]) -> dict[str, Float[np.ndarray, " P"]]:
    """The vectors less their mean, of length 1: what all words have in common tells nothing."""
    if not vectors:
        return {}
    middle = np.mean(list(vectors.values()), axis=0)
    less = {word: vector - middle for word, vector in vectors.items()}
    return {word: vector / np.linalg.norm(vector) for word, vector in less.items()}


def judge(
    triples: Sequence[Triple], counts: dict[str, int], vectors: dict[str, Float[np.ndarray, " P"]]
) -> list[Judged]:
    """The triples whose words all have a vector (of length 1)."""
    kept = [triple for triple in triples if all(word in vectors for word in triple)]
    return [
        Judged(
            triple,
            (counts[triple.word], counts[triple.related], counts[triple.unrelated]),
            float(vectors[triple.word] @ vectors[triple.related]),
            float(vectors[triple.word] @ vectors[triple.unrelated]),
        )
        for triple in kept
    ]
