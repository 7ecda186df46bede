"""The decoder with an embedding for a whole span: contrastive pretraining. Floor 3."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.core.contrastive_spec import ContrastiveSpec
from deepseek_jax.nn import model as model_lib
from deepseek_jax.nn import parameters
from deepseek_jax.nn.context import SequenceContext
from deepseek_jax.ops.balance import RouterStats
from deepseek_jax.parallel import layout as layout_lib


class SpanOutput(NamedTuple):
    """What `ModelOutput` has, and what the projection head says of spans.

    `projected` [B, P] float32 (not normalised) and `scale` [], the inverse temperature, are
    None without a contrastive term.
    """

    logits: Float[Array, "B L V"]
    aux_loss: Float[Array, ""]
    stats: RouterStats | None
    hidden: Float[Array, "B L D"]
    head: Float[Array, "D V"]
    projected: Float[Array, "B P"] | None
    scale: Float[Array, ""] | None


class SpanDecoder(model_lib.Decoder, kw_only=True):
    """A decoder whose rows are spans. Params: those of `Decoder`, and `span_head` if the
    contrastive term is on: `inner` [D, D], `outer` [D, P], and `log_scale` [] if learned."""

    contrastive: ContrastiveSpec

    def setup(self) -> None:
        """Makes the parts."""
        super().setup()
        if self.contrastive.is_on:
            self.span_head = SpanHead(self.spec.model_dim, self.contrastive)

    def __call__(  # type: ignore[override]
        self,
        tokens: Int[Array, "B L"],
        *,
        document_ids: Int[Array, "B L"],
        positions: Int[Array, "B L"],
    ) -> SpanOutput:
        """Logits, hidden states, and the projection of each row's last hidden state.

        Arguments and errors as of `Decoder.__call__`.
        """
        context = SequenceContext(document_ids, positions, None, None)
        hidden, outputs = self._hidden(tokens, None, context)
        projected, scale = None, None
        if self.contrastive.is_on:
            projected, scale = self.span_head(hidden[:, -1])
            # Gathered once, whole on every device: every span is compared with every other.
            projected = layout_lib.constrain(self.layout, projected, None, None)
        head = self._head()
        return SpanOutput(
            self._logits(hidden, head),
            jnp.mean(outputs.aux_loss),
            outputs.stats,
            hidden,
            head,
            projected,
            scale,
        )


class SpanHead(nn.Module):
    """outer^T gelu(inner^T x) in float32, and the inverse temperature."""

    dim: int
    contrastive: ContrastiveSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> tuple[Float[Array, "B P"], Float[Array, ""]]:
        """Projections of hidden states, not normalised, and the scale of their cosines."""
        # Small, and whole on every device.
        init = parameters.scaled_normal(None, None, fan_in=self.dim)
        inner = self.param("inner", init, (self.dim, self.dim), jnp.float32)
        outer = self.param("outer", init, (self.dim, self.contrastive.projection_dim), jnp.float32)
        log_scale = jnp.float32(-math.log(self.contrastive.temperature))
        if self.contrastive.learn_temperature:
            start = nn.initializers.constant(log_scale)
            log_scale = self.param("log_scale", parameters.named(start), (), jnp.float32)
        return jax.nn.gelu(x.astype(jnp.float32) @ inner) @ outer, jnp.exp(log_scale)
