"""The decoder with a scalar head: values of states, scores of texts. Floor 3."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.nn import model as model_lib
from deepseek_jax.nn import parameters
from deepseek_jax.nn.context import SequenceContext
from deepseek_jax.ops.balance import RouterStats
from deepseek_jax.parallel import layout as layout_lib


class ScalarOutput(NamedTuple):
    """One number a position, float32, and what `ModelOutput` has beside its logits."""

    scalars: Float[Array, "B L"]
    aux_loss: Float[Array, ""]
    stats: RouterStats | None


class ScalarDecoder(model_lib.Decoder):
    """The same backbone with a scalar head. Params: those of `Decoder` without `head`, and
    `scalar_head` (`kernel` [D], `bias` []), zero at first."""

    def setup(self) -> None:
        """Makes the parts."""
        super().setup()
        self.scalar_head = ScalarHead(self.spec.model_dim)

    def __call__(  # type: ignore[override]
        self,
        tokens: Int[Array, "B L"],
        *,
        document_ids: Int[Array, "B L"],
        positions: Int[Array, "B L"],
    ) -> ScalarOutput:
        """A number at every position of whole rows, from the tokens up to it.

        Arguments and errors as of `Decoder.__call__`.
        """
        context = SequenceContext(document_ids, positions, None, None)
        hidden, outputs = self._hidden(tokens, None, context)
        scalars = layout_lib.constrain(self.layout, self.scalar_head(hidden), "batch", None)
        return ScalarOutput(scalars, jnp.mean(outputs.aux_loss), outputs.stats)


class ScalarHead(nn.Module):
    """hidden . kernel + bias in float32. Params: `kernel` [D], `bias` []."""

    dim: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B L"]:
        """Returns one float32 number a position."""
        zeros = nn.initializers.zeros
        kernel = self.param("kernel", parameters.named(zeros, "embed"), (self.dim,), jnp.float32)
        bias = self.param("bias", parameters.named(zeros), (), jnp.float32)
        full = jax.lax.Precision.HIGHEST
        scalars = jnp.einsum("bld,d->bl", hidden.astype(jnp.float32), kernel, precision=full)
        return scalars + bias
