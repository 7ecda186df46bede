"""What a task vector does to one layer: shifted router logits, modulated inputs. Floor 3."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.steering_spec import TaskVectorSpec
from deepseek_jax.nn import parameters


class Modulation(NamedTuple):
    """x (1 + scale) + shift, the same for all tokens of a row (FiLM, arXiv:1709.07871, eq. 2)."""

    scale: Float[Array, "B D"]
    shift: Float[Array, "B D"]


class Conditions(NamedTuple):
    """What a layer is told of the task; None is what it is not told."""

    router_shift: Float[Array, "B E"] | None
    attention: Modulation | None
    feed_forward: Modulation | None


NOTHING = Conditions(None, None, None)


class TaskConditions(nn.Module):
    """Linear maps of the task vector, all zero at first: a new task vector changes nothing.

    Params, float32: `router_shift` [Z, E] if it shifts the router; `attention_scale`,
    `attention_shift`, `feed_forward_scale` and `feed_forward_shift` [Z, D] if it modulates
    the blocks.
    """

    spec: ModelSpec
    task_spec: TaskVectorSpec

    @nn.compact
    def __call__(self, task_vector: Float[Array, "B Z"]) -> Conditions:
        """Returns what the layer is told."""
        router_shift = attention = feed_forward = None
        if self.task_spec.shifts_router:
            router_shift = self._mapped("router_shift", task_vector, self.spec.num_experts)
        if self.task_spec.modulates_blocks:
            attention, feed_forward = (
                Modulation(
                    *(
                        self._mapped(f"{part}_{name}", task_vector, self.spec.model_dim)
                        for name in Modulation._fields
                    )
                )
                for part in ("attention", "feed_forward")
            )
        return Conditions(router_shift, attention, feed_forward)

    def _mapped(self, name: str, task_vector: Array, width: int) -> Array:
        init = parameters.named(nn.initializers.zeros, None, "norm")
        kernel = self.param(name, init, (self.task_spec.dim, width), jnp.float32)
        # As the router's gate: a GPU would round the operands to 10 bits of mantissa (TF32).
        full = jax.lax.Precision.HIGHEST
        return jnp.einsum("bz,zd->bd", task_vector, kernel, precision=full)


def modulate(x: Float[Array, "B L D"], modulation: Modulation | None) -> Float[Array, "B L D"]:
    """The modulated input; `x` itself without a modulation."""
    if modulation is None:
        return x
    scale, shift = (part[:, None].astype(x.dtype) for part in modulation)
    return x * (1 + scale) + shift


def by_token(shift: Float[Array, "B E"] | None, *, length: int) -> Float[Array, "T E"] | None:
    """The shift of each row for each of its `length` tokens."""
    if shift is None:
        return None
    return jnp.repeat(shift, length, axis=0)
