"""A sparse layer small enough for eight devices, its oracle, and meshes to put it on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.ops import experts, moe
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.routing import Routing
from deepseek_jax.parallel import exchange, expert_parallel
from deepseek_jax.parallel import layout as layout_lib

NUM_TOKENS, NUM_EXPERTS, TOP_K, MODEL_DIM, HIDDEN_DIM = 32, 8, 3, 8, 4


class Case(NamedTuple):
    """What goes into a layer, and the gradient that comes back to its answer."""

    tokens: Float[Array, "T D"]
    token_mask: Bool[Array, " T"]
    routing: Routing
    weights: ExpertWeights
    d_x: Float[Array, "T D"]


def layout(sizes):
    """Of the sizes data x expert x model."""
    data, expert, model = sizes
    spec = MeshSpec(data=data, expert=expert, model=model, exchange="exact", rows_factor=0.0)
    return layout_lib.make(spec, jax.devices())


def case(choice="random", *, num_tokens=NUM_TOKENS, top_k=TOP_K, padding=False, seed=0):
    """Random numbers; tokens choose "random" experts, or those that `choice` lists, all of them."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    if choice == "random":
        ids = np.stack([random.permutation(NUM_EXPERTS)[:top_k] for _ in range(num_tokens)])
    else:
        ids = np.broadcast_to(np.array(choice), (num_tokens, top_k))
    inner, outer = (NUM_EXPERTS, MODEL_DIM, HIDDEN_DIM), (NUM_EXPERTS, HIDDEN_DIM, MODEL_DIM)
    mask = random.random(num_tokens) < 0.7 if padding else np.ones(num_tokens, bool)
    return Case(
        tokens=normal(num_tokens, MODEL_DIM),
        token_mask=jnp.asarray(mask),
        routing=Routing(jnp.asarray(ids, jnp.int32), jnp.abs(normal(num_tokens, top_k))),
        weights=ExpertWeights(normal(*inner), normal(*inner), normal(*outer)),
        d_x=normal(num_tokens, MODEL_DIM),
    )


def on_mesh(sizes, *, capacity, local_moe=None):
    """The layer on a mesh, as a function of what `Case` holds but its last."""
    devices = layout(sizes)
    if local_moe is None:
        local_moe = moe.dropless(num_assignments=NUM_TOKENS * TOP_K)

    def layer(tokens, token_mask, routing, weights):
        return expert_parallel.moe(
            tokens,
            token_mask,
            routing,
            weights,
            layout=devices,
            local_moe=local_moe,
            rows_per_destination=capacity,
        )

    return layer


def with_gradients(layer):
    """Case -> what the layer returns, and gradients of tokens, routing weights and matrices."""

    def loss(trained, given):
        tokens, routing_weights, weights = trained
        routing = given.routing._replace(weights=routing_weights)
        output = layer(tokens, given.token_mask, routing, weights)
        return jnp.vdot(output.x.astype(jnp.float32), given.d_x), output

    def run(given):
        trained = (given.tokens, given.routing.weights, given.weights)
        gradients, output = jax.grad(loss, has_aux=True)(trained, given)
        return output, gradients

    return run


def reference(tokens, token_mask, routing, weights):
    """Every expert on every token."""
    x = experts.moe_reference(tokens, routing, weights, token_mask)
    return expert_parallel.ExpertParallelOutput(x, *[jnp.int32(0)] * 3)


def kept_of(given, sizes, *, capacity):
    """Which assignments find a row [T, K]: each device asks for its own tokens."""
    data, expert, _ = sizes
    shards = np.split(np.arange(len(given.tokens)), data * expert)
    if expert == 1:  # nothing travels
        return np.ones(given.routing.expert_ids.shape, bool)
    return np.concatenate(
        [
            exchange.kept_reference(
                given.routing.expert_ids[shard],
                given.token_mask[shard],
                num_devices=expert,
                experts_per_device=NUM_EXPERTS // expert,
                capacity=capacity,
            )
            for shard in shards
        ]
    )


def visits_of(given, sizes, assignments):
    """Pairs of a token and a device, one for all that a set of assignments [T, K] has in common."""
    owners = np.asarray(given.routing.expert_ids) // (NUM_EXPERTS // sizes[1])
    return {(t, int(owners[t, k])) for t, k in zip(*np.nonzero(assignments), strict=True)}
