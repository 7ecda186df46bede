"""Whether rollout and training send a token to the same experts. Floor 6.

The decoding steps of a rollout are taken again with the tokens that were drawn, and the experts
that they choose are compared with those of the training pass over whole rows. In float32 they
differ only where two scores are all but equal; in bfloat16 the two computations round apart.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.nn import model as model_lib
from deepseek_jax.nn.model import Decoder
from deepseek_jax.reinforcement.rollout import Prompts, Rollout


def expert_mismatch(
    model: Decoder, variables: Mapping[str, Any], prompts: Prompts, drawn: Rollout
) -> Float[Array, ""]:
    """Share of (answer token, layer) whose set of experts differs between the two.

    Args:
      model: sparse and dropless.
      variables: what drew the answers.
      prompts: of the rollout, one for each answer.
      drawn: the answers; the end token, which no step has read, is left out.

    Returns:
      [] float32; 0 where no answer has two tokens.
    """
    stepped = _stepped_ids(model, variables, prompts, drawn)
    whole = _whole_ids(model, variables, drawn)
    num_new = drawn.responses.shape[1]
    index = prompts.lengths[:, None] + jnp.arange(num_new)
    index = jnp.minimum(index, drawn.tokens.shape[1] - 1)
    trained = jnp.take_along_axis(whole, index[None, :, :, None], axis=2)
    differs = jnp.any(jnp.sort(stepped, axis=-1) != jnp.sort(trained, axis=-1), axis=-1)
    was_read = drawn.response_mask & jnp.pad(drawn.response_mask[:, 1:], ((0, 0), (0, 1)))
    compared = jnp.broadcast_to(was_read[None], differs.shape)
    count = jnp.sum(compared, dtype=jnp.float32)
    return jnp.sum(differs & compared, dtype=jnp.float32) / jnp.maximum(count, 1.0)


def _stepped_ids(
    model: Decoder, variables: Mapping[str, Any], prompts: Prompts, drawn: Rollout
) -> Int[Array, "layers B S K"]:
    """Expert ids of each answer token, by the steps that read it."""
    batch_size, width = prompts.tokens.shape
    num_new = drawn.responses.shape[1]
    cache = model_lib.empty_cache(model.spec, batch_size=batch_size, max_length=width + num_new)
    answer: Any = model.apply(variables, prompts.tokens, prompts.lengths, cache, method="prefill")
    _, cache = answer
    weights = model.apply(variables, method="step_weights")

    def step(
        cache: model_lib.DecoderCache, tokens: Int[Array, " B"]
    ) -> tuple[model_lib.DecoderCache, Int[Array, "layers B K"]]:
        answer: Any = model.apply(
            variables, tokens, cache, weights, method="step", mutable=["intermediates"]
        )
        (_, cache), sown = answer
        return cache, _ids(sown)

    _, ids = jax.lax.scan(step, cache, drawn.responses.T)
    return jnp.moveaxis(ids, 0, 2)


def _whole_ids(
    model: Decoder, variables: Mapping[str, Any], drawn: Rollout
) -> Int[Array, "layers B L K"]:
    """Expert ids of every position, by the training pass."""
    answer: Any = model.apply(
        variables,
        drawn.tokens,
        document_ids=drawn.document_ids,
        positions=drawn.positions,
        mutable=["intermediates"],
    )
    ids = _ids(answer[1])
    return ids.reshape(ids.shape[0], *drawn.tokens.shape, ids.shape[-1])


def _ids(sown: Mapping[str, Any]) -> Int[Array, "layers T K"]:
    """What the routers have sown."""
    (ids,) = sown["intermediates"]["layers"]["feed_forward"]["router"]["expert_ids"]
    return ids
