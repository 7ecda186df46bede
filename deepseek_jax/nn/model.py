"""The decoder: tokens to next-token logits. Floor 3.

One set of parameters, three computations: whole rows (`__call__`), right-padded prompts into
a cache (`prefill`), and one more token for each sequence (`step`).
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.steering_spec import TaskVectorSpec
from deepseek_jax.nn import parameters
from deepseek_jax.nn.block import Block, BlockOutput
from deepseek_jax.nn.context import SequenceContext, StepContext
from deepseek_jax.ops import attention_cache, norm
from deepseek_jax.ops.attention_cache import LayerCache
from deepseek_jax.ops.balance import RouterStats
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel.layout import Layout


class ModelOutput(NamedTuple):
    """Next-token logits, the weighted balancing loss, and routing statistics by layer.

    `aux_loss` is the mean over the layers, so its weight does not depend on the depth;
    `stats` has a leading layer axis and is None in a dense model. The logits are `hidden` times
    `head`, both in the compute dtype: a jitted loss that takes these two (`training/nats.py`)
    never makes logits, which then nothing reads.
    """

    logits: Float[Array, "B L V"]
    aux_loss: Float[Array, ""]
    stats: RouterStats | None
    hidden: Float[Array, "B L D"]
    head: Float[Array, "D V"]


class DecoderCache(NamedTuple):
    """The past of each layer, the tokens that each sequence holds, and its task vector if any."""

    layers: tuple[LayerCache, ...]
    lengths: Int[Array, " B"]
    task_vector: Float[Array, "B Z"] | None = None


class StepWeights(NamedTuple):
    """What every step reads: each layer's variables, and the head [D, V].

    The matrices that a step would round to the compute dtype are rounded already, so that many
    steps neither round them nor cut them out of those of all layers, each time a copy of all.
    """

    layers: tuple[Any, ...]
    head: Float[Array, "D V"]


def empty_cache(spec: ModelSpec, *, batch_size: int, max_length: int) -> DecoderCache:
    """A cache for sequences of up to `max_length` tokens.

    Raises:
      ValueError: `max_length` is beyond the model's context.
    """
    if not 1 <= max_length <= spec.context_length:
        raise ValueError(
            f"max_length={max_length} is outside [1, {spec.context_length}], "
            "the range that model.context_length allows"
        )
    num_blocks = math.ceil(max_length / spec.block_size)
    full = spec.attention == "full"
    layers = tuple(
        attention_cache.empty_cache(
            batch_size=batch_size,
            block_size=num_blocks * spec.block_size if full else spec.block_size,
            num_blocks=1 if full else num_blocks,
            num_summaries=spec.num_summaries,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            dtype=jnp.dtype(spec.compute_dtype),
        )
        for _ in range(spec.num_layers)
    )
    return DecoderCache(layers, jnp.zeros((batch_size,), jnp.int32))


class Decoder(nn.Module):
    """A decoder of scanned blocks. Params: `embed`, `layers`, `final_norm`, and `head` if untied.

    State, only with `balance="bias"`: collection `balance`. With a `layout`, rows and parameters
    lie on its mesh; the parameters themselves don't depend on it. With a `task_spec` every row
    has a task vector, which acts in each layer (`nn/conditioning.py`).
    """

    spec: ModelSpec
    layout: Layout | None = None
    task_spec: TaskVectorSpec | None = None

    def setup(self) -> None:
        """Makes the parts."""
        spec = self.spec
        block = nn.remat(Block, prevent_cse=False) if spec.remat == "block" else Block
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "balance": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=spec.num_layers,
            unroll=spec.scan_unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(spec, self.layout, self.task_spec)
        self.embed = nn.Embed(
            spec.vocab_size,
            spec.model_dim,
            dtype=jnp.dtype(spec.compute_dtype),
            embedding_init=parameters.scaled_normal("vocab", "embed", fan_in=spec.model_dim),
        )
        self.final_norm = parameters.NormScale(spec.model_dim, "norm")
        if not spec.tie_embeddings:
            self.head = HeadKernel(spec)

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        *,
        document_ids: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        task_vector: Float[Array, "B Z"] | None = None,
    ) -> ModelOutput:
        """Next-token logits at every position of whole rows.

        Args:
          tokens: [B, L] int32; L a multiple of the block size.
          document_ids: [B, L] int32; which document of its row a token belongs to, 0 padding.
          positions: [B, L] int32; index of the token in its document.
          task_vector: [B, Z] float32 with a `task_spec`, else None.

        Raises:
          ValueError: L is not a multiple of the block size, or a task vector is missing or not
            wanted (trace time).
        """
        context = SequenceContext(document_ids, positions, None, task_vector)
        hidden, outputs = self._hidden(tokens, None, context)
        head = self._head()
        return ModelOutput(
            self._logits(hidden, head),
            jnp.mean(outputs.aux_loss),
            outputs.stats,
            hidden,
            head,
        )

    def prefill(
        self, tokens: Int[Array, "B L"], lengths: Int[Array, " B"], cache: DecoderCache
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Reads right-padded prompts into the cache.

        Args:
          tokens: [B, L] int32; L a multiple of the block size.
          lengths: [B] int32 in [1, L]; tokens of each prompt.
          cache: an empty cache; fixes the capacity, and has the task vector if there is one.

        Returns:
          Logits [B, V] after each prompt's last token, and the cache.
        """
        index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        document_ids = (index < lengths[:, None]).astype(jnp.int32)
        positions = jnp.broadcast_to(index, tokens.shape)
        context = SequenceContext(document_ids, positions, lengths, cache.task_vector)
        stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *cache.layers)
        hidden, outputs = self._hidden(tokens, stacked, context)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        filled = tuple(_layer(outputs.cache, index) for index in range(len(cache.layers)))
        logits = self._logits(last, self._head())[:, 0]
        return logits, DecoderCache(filled, lengths, cache.task_vector)

    def step_weights(self) -> StepWeights:
        """For `step`, made once for many steps.

        Returns:
          A tuple with the variables of each layer, and the head [D, V]; together as large as the
          parameters are in the compute dtype.
        """
        stacked = parameters.rounded(
            nn.meta.unbox(self.layers.variables), jnp.dtype(self.spec.compute_dtype)
        )
        layers = tuple(_layer(stacked, index) for index in range(self.spec.num_layers))
        return StepWeights(layers, self._head())

    def step(
        self, tokens: Int[Array, " B"], cache: DecoderCache, weights: StepWeights | None = None
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Appends one token to each sequence.

        Args:
          tokens: [B] int32.
          cache: what the sequences hold.
          weights: of `step_weights`; None makes them, for this step alone. Changes no result.

        Returns:
          Logits [B, V] after the token, and the new cache.
        """
        self._check_task(cache.task_vector)
        if weights is None:
            weights = self.step_weights()
        context = StepContext(cache.lengths, cache.task_vector)
        x = self._embedded(tokens[:, None])
        # Layer by layer, not scanned: a scan hands its caches back as copies.
        block = Block(self.spec, self.layout, self.task_spec, parent=None)
        sows = self.is_mutable_collection("intermediates")
        filled, sown = [], []
        for variables, layer_cache in zip(weights.layers, cache.layers, strict=True):
            answer: Any = block.apply(
                variables,
                x,
                layer_cache,
                context,
                mutable=["intermediates"] if sows else False,
            )
            (x, output), left = answer if sows else (answer, {})
            filled.append(output.cache)
            sown.append(left)
        if sows:
            # A dense layer sows nothing.
            together = jax.tree.map(lambda *layers: jnp.stack(layers), *sown)
            for collection, parts in together.items():
                for name, value in parts.items():
                    self.layers.put_variable(collection, name, value)
        logits = self._logits(self._normed(x), weights.head)[:, 0]
        return logits, DecoderCache(tuple(filled), cache.lengths + 1, cache.task_vector)

    def _hidden(
        self, tokens: Int[Array, "B L"], cache: LayerCache | None, context: SequenceContext
    ) -> tuple[Float[Array, "B L D"], BlockOutput]:
        """The last layer's normalised output, and what the layers leave, stacked."""
        spec = self.spec
        if tokens.shape[1] % spec.block_size:
            raise ValueError(
                f"rows of {tokens.shape[1]} tokens: must be a multiple of "
                f"model.block_size={spec.block_size}"
            )
        self._check_task(context.task_vector)
        x, outputs = self.layers(self._embedded(tokens), cache, context)
        return self._normed(x), outputs

    def _check_task(self, task_vector: Array | None) -> None:
        """Raises unless there is a task vector exactly where the decoder has a use for one."""
        if (task_vector is None) != (self.task_spec is None):
            has = "no task_vector" if task_vector is None else "a task_vector"
            raise ValueError(f"{has} for a decoder with task_spec={self.task_spec}")

    def _embedded(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The first layer's input."""
        x = self.embed(tokens)
        if not self.spec.tie_embeddings:
            # The stream starts at unit scale. A tied head would read so loud an embedding back
            # as a vote for the token just seen, of sqrt(D) nats.
            x = x * jnp.asarray(math.sqrt(self.spec.model_dim), x.dtype)
        return layout_lib.constrain(self.layout, x, "batch", None, None)

    def _normed(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The last layer's output, normalised."""
        return norm.rms_norm(x, self.final_norm(), eps=self.spec.norm_eps)

    def _head(self) -> Float[Array, "D V"]:
        """What logits are the products with, in the compute dtype."""
        kernel = self.embed.embedding.T if self.spec.tie_embeddings else self.head()
        return kernel.astype(jnp.dtype(self.spec.compute_dtype))

    def _logits(
        self, hidden: Float[Array, "B L D"], head: Float[Array, "D V"]
    ) -> Float[Array, "B L V"]:
        """Float32 logits from hidden states in the compute dtype."""
        logits = jnp.einsum("bld,dv->blv", hidden, head, preferred_element_type=jnp.float32)
        return layout_lib.constrain(self.layout, logits, "batch", None, "vocab")


class HeadKernel(nn.Module):
    """The output matrix of an untied model. Params: `kernel` [D, V] float32."""

    spec: ModelSpec

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the kernel [D, V]."""
        spec = self.spec
        init = parameters.scaled_normal("embed", "vocab", fan_in=spec.model_dim)
        return self.param("kernel", init, (spec.model_dim, spec.vocab_size), jnp.float32)


def _layer(stacked: Any, index: int) -> Any:
    """One layer of a tree whose arrays have a leading layer axis."""
    return jax.tree.map(lambda x: x[index], stacked)
