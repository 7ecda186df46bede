"""What the layers are told beside their input: which tokens these are. Floor 3.

The type of the context selects the computation, so a compiled program has one of the two:
whole sequences (`SequenceContext`) or one more token for each sequence (`StepContext`).
"""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class SequenceContext(NamedTuple):
    """Whole rows of tokens.

    `document_ids` is 0 at padding; `positions` counts from the start of each document.
    `lengths` is given when caches are to be made for right-padded prompts, else None;
    `task_vector` in a decoder that has one.
    """

    document_ids: Int[Array, "B L"]
    positions: Int[Array, "B L"]
    lengths: Int[Array, " B"] | None
    task_vector: Float[Array, "B Z"] | None


class StepContext(NamedTuple):
    """One new token a sequence, at the position `positions` of that sequence."""

    positions: Int[Array, " B"]
    task_vector: Float[Array, "B Z"] | None
