"""Linen shell over the attention operations. Floor 3: parameters, dtypes and axis names only."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.nn import kernels, parameters
from deepseek_jax.nn.context import SequenceContext, StepContext
from deepseek_jax.ops import attention, attention_cache, norm, rope, summaries
from deepseek_jax.ops.attention_cache import LayerCache
from deepseek_jax.ops.flash import attention as flash
from deepseek_jax.parallel import headwise
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel.layout import Layout


class Attention(nn.Module):
    """Grouped-query attention with query/key norm and rotary positions.

    Params: `query`/`key`/`value` kernels [D, heads, H], `out` kernel [N, H, D], norm scales
    [H]; with summaries also `summary_queries` [M, m, H] and `summary_positions` [M, m, C].
    All float32.
    """

    spec: ModelSpec
    layout: Layout | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: SequenceContext | StepContext,
        cache: LayerCache | None,
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """Attends within whole rows, or from one new token to the cache.

        Args:
          x: [B, L, D] normalised input; L is 1 with a `StepContext`.
          context: which tokens these are.
          cache: the past; fixes the capacity when whole prompts are to be cached.

        Returns:
          [B, L, D], and the new cache where one was given.
        """
        spec = self.spec
        query = self._heads("query", spec.num_heads, "heads")(x)
        key = self._heads("key", spec.num_kv_heads, "kv_heads")(x)
        value = self._heads("value", spec.num_kv_heads, "kv_heads")(x)
        query = self._normed("query_norm", query)
        key = self._normed("key_norm", key)
        query, key, value = (
            layout_lib.constrain(self.layout, x, "batch", None, "heads", None)
            for x in (query, key, value)
        )
        compression, summary_scale = self._summary_parameters()
        if isinstance(context, StepContext):
            assert cache is not None
            attended, cache = self._step(
                query[:, 0], key[:, 0], value[:, 0], context, cache, compression, summary_scale
            )
            attended = attended[:, None]
        else:
            attended, cache = self._sequence(
                query, key, value, context, cache, compression, summary_scale
            )
        out = nn.DenseGeneral(
            features=spec.model_dim,
            axis=(-2, -1),
            use_bias=False,
            dtype=jnp.dtype(spec.compute_dtype),
            kernel_init=parameters.scaled_normal(
                "heads",
                "head_dim",
                "embed",
                fan_in=spec.num_heads * spec.head_dim,
                gain=1.0 / math.sqrt(2 * spec.num_layers),
            ),
            name="out",
        )
        return out(attended), cache

    def _sequence(
        self,
        query: Array,
        key: Array,
        value: Array,
        context: SequenceContext,
        cache: LayerCache | None,
        compression: summaries.CompressionWeights | None,
        summary_scale: Array | None,
    ) -> tuple[Array, LayerCache | None]:
        """Attention inside whole rows; fills the cache where one is given."""
        spec = self.spec
        base = spec.rope_base
        rotated_query = rope.rotate(query, context.positions, base=base)
        rotated_key = rope.rotate(key, context.positions, base=base)
        pooled = None
        if compression is not None:
            pooled = summaries.summarize_blocks(
                key,
                value,
                context.document_ids,
                context.positions,
                compression,
                block_size=spec.block_size,
            )
            pooled = pooled._replace(
                key=self._summary_key(pooled.key, pooled.positions[..., None], summary_scale)
            )
        operands = (rotated_query, rotated_key, value, context.document_ids)
        if spec.attention == "full":
            attended = _attend_fully(*operands, spec=spec, layout=self.layout)
        else:
            attended = attention.local_global_attention(
                *operands, pooled, block_size=spec.block_size
            )
        if cache is not None:
            assert context.lengths is not None
            none = jnp.moveaxis(cache.summary_key[:, :, :0], 1, 3)
            cache = attention_cache.filled_cache(
                cache,
                rotated_key,
                value,
                none if pooled is None else pooled.key,
                none if pooled is None else pooled.value,
                context.lengths,
            )
        return attended, cache

    def _step(
        self,
        query: Array,
        key: Array,
        value: Array,
        context: StepContext,
        cache: LayerCache,
        compression: summaries.CompressionWeights | None,
        summary_scale: Array | None,
    ) -> tuple[Array, LayerCache]:
        """Attention of one new token a sequence; blocks that it finishes are summarised."""
        base, positions = self.spec.rope_base, context.positions
        cache = attention_cache.append(
            cache, rope.rotate(key, positions, base=base), value, positions
        )
        if compression is not None:
            # Before attention, so that it reads what was written last and nothing is copied; of
            # its own block a token never sees the summaries.
            cache = self._with_summaries(cache, positions, compression, summary_scale)
        rotated = rope.rotate(query, positions, base=base)
        return attention_cache.attend_cache(rotated, cache, positions), cache

    def _with_summaries(
        self,
        cache: LayerCache,
        positions: Array,
        compression: summaries.CompressionWeights,
        summary_scale: Array | None,
    ) -> LayerCache:
        """The cache with the summaries of the blocks that the newest tokens have filled."""

        def pool(cache: LayerCache) -> tuple[Array, Array]:
            block = attention_cache.current_block(cache, positions, rope_base=self.spec.rope_base)
            whole_block = jnp.ones(block[0].shape[:2], bool)
            pooled_key, pooled_value = summaries.compress(*block, whole_block, compression)
            return self._summary_key(pooled_key, positions[:, None], summary_scale), pooled_value

        def nothing(cache: LayerCache) -> tuple[Array, Array]:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(pool, cache))

        # The branches hand back what is new and never the cache, which would be copied.
        is_full = positions % self.spec.block_size == self.spec.block_size - 1
        pooled_key, pooled_value = jax.lax.cond(jnp.any(is_full), pool, nothing, cache)
        return attention_cache.put_summaries(cache, pooled_key, pooled_value, positions)

    def _heads(self, name: str, num_heads: int, axis: str) -> nn.DenseGeneral:
        spec = self.spec
        init = parameters.scaled_normal("embed", axis, "head_dim", fan_in=spec.model_dim)
        return nn.DenseGeneral(
            features=(num_heads, spec.head_dim),
            use_bias=False,
            dtype=jnp.dtype(spec.compute_dtype),
            kernel_init=init,
            name=name,
        )

    def _normed(self, name: str, x: Array) -> Array:
        scale = parameters.NormScale(self.spec.head_dim, "head_dim", name=name)()
        return norm.rms_norm(x, scale, eps=self.spec.norm_eps)

    def _summary_key(self, pooled: Array, positions: Array, scale: Array | None) -> Array:
        """Pooled keys [*B, m, M, H] at unit scale again, rotated to `positions` [*B, 1].

        A mean of keys is shorter than a key; the norm gives it back a full voice.
        """
        assert scale is not None
        normed = norm.rms_norm(pooled, scale, eps=self.spec.norm_eps)
        positions = jnp.broadcast_to(positions, pooled.shape[:-2])
        return rope.rotate(normed, positions, base=self.spec.rope_base)

    def _summary_parameters(self) -> tuple[summaries.CompressionWeights | None, Array | None]:
        spec = self.spec
        if spec.num_summaries == 0:
            return None, None
        shape = (spec.num_kv_heads, spec.num_summaries)
        # Keys have unit scale, so queries of unit scale spread the logits by about one: the
        # summaries of a block start out different from each other.
        queries = self.param(
            "summary_queries",
            parameters.scaled_normal("kv_heads", None, "head_dim", fan_in=1),
            (*shape, spec.head_dim),
            jnp.float32,
        )
        positions = self.param(
            "summary_positions",
            parameters.named(nn.initializers.zeros, "kv_heads", None, None),
            (*shape, spec.block_size),
            jnp.float32,
        )
        scale = parameters.NormScale(spec.head_dim, "head_dim", name="summary_norm")()
        return summaries.CompressionWeights(queries, positions), scale


def _attend_fully(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    document_ids: Int[Array, "B L"],
    *,
    spec: ModelSpec,
    layout: Layout | None,
) -> Float[Array, "B L N H"]:
    """Full attention by what `model.attention_kernel` names; tiles are cut by the compiler."""
    device = jax.devices()[0]
    kernel = spec.attention_kernel
    kernels.check("model.attention_kernel", kernel, flash.for_device(device), device)
    if kernel == "auto":
        kernel = flash.choose(device, query, key)
        heads = f"{spec.num_heads} heads of {spec.head_dim}"
        what = f"{query.shape[1]} tokens, {heads}, {spec.num_kv_heads} of keys, in {query.dtype}"
        kernels.tell("model.attention_kernel", kernel, what, device.device_kind)
    operands = (query, key, value, document_ids)
    if kernel == "tiles":
        return attention.full_attention(*operands, block_size=spec.block_size)
    return headwise.apply(layout, flash.flash_attention, *operands)
