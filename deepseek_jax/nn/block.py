"""One decoder block: attention, then the feed-forward part, each behind a norm. Floor 3."""

from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.steering_spec import TaskVectorSpec
from deepseek_jax.nn import attention, conditioning, feed_forward, parameters
from deepseek_jax.nn.context import SequenceContext, StepContext
from deepseek_jax.ops import norm
from deepseek_jax.ops.attention_cache import LayerCache
from deepseek_jax.ops.balance import RouterStats
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel.layout import Layout


class BlockOutput(NamedTuple):
    """What a block leaves beside the residual stream."""

    aux_loss: Float[Array, ""]
    stats: RouterStats | None
    cache: LayerCache | None


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); the carry of a scan over layers.

    With a `task_spec` the context's task vector modulates both norms and shifts the router's
    logits (`nn/conditioning.py`); without one neither the parameters nor the operations exist.
    """

    spec: ModelSpec
    layout: Layout | None
    task_spec: TaskVectorSpec | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        cache: LayerCache | None,
        context: SequenceContext | StepContext,
    ) -> tuple[Float[Array, "B L D"], BlockOutput]:
        """Applies the block to the residual stream `x` [B, L, D]."""
        spec = self.spec
        told = conditioning.NOTHING
        if self.task_spec is not None:
            assert context.task_vector is not None
            told = conditioning.TaskConditions(spec, self.task_spec, name="task")(
                context.task_vector
            )
        attended, cache = attention.Attention(spec, self.layout, name="attention")(
            conditioning.modulate(self._normed("attention_norm", x), told.attention),
            context,
            cache,
        )
        x = layout_lib.constrain(self.layout, x + attended, "batch", None, None)
        if isinstance(context, StepContext):
            token_mask = context.positions[:, None] >= 0
        else:
            token_mask = context.document_ids != 0
        normed = conditioning.modulate(self._normed("feed_forward_norm", x), told.feed_forward)
        if spec.is_dense:
            fed = feed_forward.DenseFeedForward(spec, name="feed_forward")(normed, token_mask)
        else:
            fed = feed_forward.SparseFeedForward(spec, self.layout, name="feed_forward")(
                normed, token_mask, told.router_shift
            )
        x = layout_lib.constrain(self.layout, x + fed.x, "batch", None, None)
        return x, BlockOutput(fed.aux_loss, fed.stats, cache)

    def _normed(self, name: str, x: Array) -> Array:
        scale = parameters.NormScale(self.spec.model_dim, "norm", name=name)()
        return norm.rms_norm(x, scale, eps=self.spec.norm_eps)
