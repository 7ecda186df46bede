"""The smallest models that have every part: shared by the tests of nn, decoding and training."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.nn import model as model_lib

SPARSE = ModelSpec(
    vocab_size=50,
    context_length=64,
    num_layers=2,
    model_dim=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_base=1000.0,
    attention="local_global",
    block_size=4,
    attention_kernel="tiles",
    num_summaries=2,
    num_experts=8,
    num_groups=4,
    top_groups=2,
    top_k=2,
    num_shared_experts=0,
    expert_hidden_dim=16,
    router_scores="softmax",
    router_weights="renormalized",
    router_scale=1.0,
    balance="loss",
    load_balance_weight=0.01,
    router_z_weight=0.001,
    bias_update_rate=0.0,
    dispatch="dropless",
    capacity_factor=0.0,
    expert_kernel="loop",
    tie_embeddings=True,
    norm_eps=1e-6,
    remat="none",
    scan_unroll=1,
    compute_dtype="float32",
)
DENSE = dataclasses.replace(
    SPARSE,
    num_experts=1,
    num_groups=1,
    top_groups=1,
    top_k=1,
    expert_hidden_dim=32,
    router_weights="raw",
    balance="none",
    load_balance_weight=0.0,
    router_z_weight=0.0,
)
BIASED = dataclasses.replace(
    SPARSE,
    router_scores="sigmoid",
    balance="bias",
    load_balance_weight=0.0,
    bias_update_rate=0.01,
    num_shared_experts=1,
    router_scale=2.5,
    tie_embeddings=False,
)
VARIANTS = {
    "sparse": SPARSE,
    "dense": DENSE,
    "biased": BIASED,
    "local only": dataclasses.replace(SPARSE, num_summaries=0),
    "full": dataclasses.replace(SPARSE, attention="full", num_summaries=0),
}


def rows(*, seed=0, batch_size=2, length=20, vocab_size=50):
    """Random unpacked rows: tokens, and the keyword arguments that go with them."""
    shape = (batch_size, length)
    tokens = jax.random.randint(jax.random.key(seed), shape, 0, vocab_size, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], shape)
    return tokens, {"document_ids": jnp.ones(shape, jnp.int32), "positions": positions}


def applied(model, variables, *arguments, method=None, mutable=False, **context):
    """`model.apply` as one program: operation by operation it is compiled ten times longer."""
    apply = functools.partial(model.apply, method=method, mutable=mutable)
    return jax.jit(apply)(variables, *arguments, **context)


def make(spec, *, seed=0):
    """The decoder of `spec` and its variables, unboxed."""
    model = model_lib.Decoder(spec)
    tokens, context = rows(length=spec.block_size)
    variables = jax.jit(lambda key: nn.unbox(model.init(key, tokens, **context)))(
        jax.random.key(seed)
    )
    return model, {name: variables[name] for name in ("params", "balance") if name in variables}
