"""The next-token loss of a model's output, on one device or a mesh. Floor 5."""

from typing import Protocol

from jaxtyping import Array, Float, Int

from deepseek_jax.objectives import linear_next_token
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel.layout import Layout

# Float32 logits that a device holds at a time: large enough that products with the head's matrix
# are as fast as whole, and that the sum of its gradient is seldom read and written.
MAX_LOGITS_BYTES = 2**29


class Readable(Protocol):
    """Of a model's output, what its logits are the product of."""

    @property
    def hidden(self) -> Float[Array, "B L D"]:
        """In the compute dtype."""

    @property
    def head(self) -> Float[Array, "D V"]:
        """In the compute dtype."""


def weighted(
    output: Readable,
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    *,
    layout: Layout | None,
) -> Float[Array, ""]:
    """The weighted sum of the targets' negative log-probabilities in nats, float32.

    Args:
      output: of the model.
      targets: [B, L] int32.
      weights: [B, L] float32, 0 where there is no target.
      layout: the mesh that the model lies on; None on one device.
    """
    num_parts, num_cuts = (
        (1, 1) if layout is None else (layout.spec.num_row_shards, layout.spec.model)
    )
    num_rows, length = targets.shape
    chunk = linear_next_token.chunk_length(
        num_rows=num_rows // num_parts,
        length=length,
        vocab_size=output.head.shape[-1] // num_cuts,
        max_bytes=MAX_LOGITS_BYTES,
    )
    return linear_next_token.weighted_nats(
        output.hidden,
        # Gathered once, not for every chunk.
        layout_lib.constrain(layout, output.head, None, "vocab"),
        targets,
        weights,
        chunk=chunk,
        num_parts=num_parts,
        constrain=lambda x: layout_lib.constrain(layout, x, "batch", None, "vocab"),
    )
