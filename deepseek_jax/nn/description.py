"""From the tokens of a description to a task vector. Floor 3.

Axes: R descriptions, W tokens of a description, Z width of the vector.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.core.steering_spec import TaskVectorSpec
from deepseek_jax.nn import parameters
from deepseek_jax.ops import norm

# The token that stands behind a description; a description of nothing else is missing.
PADDING = 0
_EPS = 1e-6


class DescriptionEncoder(nn.Module):
    """Windows over embedded tokens and positions, then weighted means; all float32.

    Positions are part of what is read, so that "sort, then reverse" and "reverse, then sort"
    are two descriptions.

    Params: `embedding` [V, N], `positions` [W, N], for each layer `window_i` [window N, N] and
    `norm_i`, `queries` [N, Q], `out` [Q N, Z], and `missing` [Z], the vector of no description.
    """

    task_spec: TaskVectorSpec
    vocab_size: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "R W"]) -> Float[Array, "R Z"]:
        """Returns vectors of root mean square 1.

        Args:
          tokens: [R, W] int32, right-padded with `PADDING`; all padding is a missing one.
        """
        spec = self.task_spec
        width = spec.encoder_dim
        is_token = tokens != PADDING
        embedding = self._matrix("embedding", self.vocab_size, width, fan_in=1)
        positions = self._matrix("positions", spec.description_length, width, fan_in=1)
        x = jnp.where(is_token[..., None], embedding[tokens] + positions[None], 0.0)
        for layer in range(spec.encoder_layers):
            size = spec.encoder_window * width
            kernel = self._matrix(f"window_{layer}", size, width, fan_in=size)
            seen = nn.gelu(jnp.einsum("rwn,nm->rwm", _windows(x, spec.encoder_window), kernel))
            scale = parameters.NormScale(width, "norm", name=f"norm_{layer}")()
            x = norm.rms_norm(x + seen, scale, eps=_EPS)
            x = jnp.where(is_token[..., None], x, 0.0)
        queries = self._matrix("queries", width, spec.num_queries, fan_in=width)
        means = _weighted_means(x, jnp.einsum("rwn,nq->rwq", x, queries), is_token)
        size = spec.num_queries * width
        out = self._matrix("out", size, spec.dim, fan_in=size)
        described = means.reshape(-1, size) @ out
        missing = self.param(
            "missing",
            parameters.named(nn.initializers.normal(1.0), None),
            (spec.dim,),
            jnp.float32,
        )
        is_missing = ~jnp.any(is_token, axis=-1, keepdims=True)
        vector = jnp.where(is_missing, missing[None], described)
        return norm.rms_norm(vector, jnp.ones((spec.dim,)), eps=_EPS)

    def _matrix(self, name: str, rows: int, columns: int, *, fan_in: int) -> Array:
        init = parameters.scaled_normal(None, "norm", fan_in=fan_in)
        return self.param(name, init, (rows, columns), jnp.float32)


def _windows(x: Float[Array, "R W N"], window: int) -> Float[Array, "R W F"]:
    """Each token with those around it, end to end; zeros beyond the ends."""
    around = window // 2
    padded = jnp.pad(x, ((0, 0), (around, around), (0, 0)))
    return jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(window)], axis=-1)


def _weighted_means(
    x: Float[Array, "R W N"], logits: Float[Array, "R W Q"], is_token: Bool[Array, "R W"]
) -> Float[Array, "R Q N"]:
    """A softmax over the tokens for each query; zeros where there is no token."""
    kept = is_token[..., None]
    largest = jnp.max(jnp.where(kept, logits, -jnp.inf), axis=1, keepdims=True)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    weights = jnp.where(kept, jnp.exp(jnp.where(kept, logits - largest, 0.0)), 0.0)
    total = jnp.maximum(jnp.sum(weights, axis=1), 1e-9)
    return jnp.einsum("rwq,rwn->rqn", weights, x) / total[..., None]
