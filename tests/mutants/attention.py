"""Mutants of attention, its summaries, its cache, rotary positions and sampling."""

from tests.mutants.mutant import Mutant

_OPS = "deepseek_jax/ops"
_ATTENTION = "tests/ops/attention_test.py::"
_SMALL = "tests/ops/norm_rope_sampling_test.py::"
_DECODING = (
    "tests/nn/model_test.py::test_cached_decoding_equals_the_full_pass_at_every_position[sparse]",
)
_LOCAL = tuple(
    f"{_ATTENTION}test_local_global_equals_the_oracle[True-{layout}]"
    for layout in ("one document", "inside blocks", "padding")
)


def _mutant(file: str, name: str, snippet: str, replacement: str, tests: tuple[str, ...]) -> Mutant:
    return Mutant(
        name=name,
        path=f"{_OPS}/{file}.py",
        snippet=snippet,
        replacement=replacement,
        tests=tests,
    )


MUTANTS = (
    _mutant(
        "attention",
        "a block sees its own summaries",
        "earlier = jnp.arange(num_blocks) < block_index",
        "earlier = jnp.arange(num_blocks) <= block_index",
        _LOCAL,
    ),
    _mutant(
        "attention",
        "a query sees the next token",
        "causal = jnp.tril(jnp.ones((block_size, block_size), bool))",
        "causal = jnp.tril(jnp.ones((block_size, block_size), bool), 1)",
        (f"{_ATTENTION}test_the_future_is_unseen_bit_for_bit", *_LOCAL),
    ),
    _mutant(
        "attention",
        "summaries of other documents are seen",
        "mask = jnp.repeat(same & earlier[None, None], per_block, axis=-1)",
        "mask = jnp.repeat((same | True) & earlier[None, None], per_block, axis=-1)",
        (f"{_ATTENTION}test_changing_one_document_changes_no_other_bit_for_bit[hybrid]",),
    ),
    _mutant(
        "attention",
        "tiles on the diagonal are skipped",
        "jax.lax.cond(column_index <= row_index, visible",
        "jax.lax.cond(column_index < row_index, visible",
        (f"{_ATTENTION}test_full_equals_the_oracle[one document]",),
    ),
    _mutant(
        "attention",
        "query heads are dealt out in turn",
        "length, num_kv_heads, num_heads // num_kv_heads, head_dim)",
        "length, num_heads // num_kv_heads, num_kv_heads, head_dim).swapaxes(2, 3)",
        _LOCAL,
    ),
    _mutant(
        "softmax_parts",
        "the second part keeps its own scale",
        "+ second.weighted_values * second_scale[..., None],",
        "+ second.weighted_values,",
        _LOCAL,
    ),
    _mutant(
        "softmax_parts",
        "no scale by the width",
        "jnp.where(mask, logits / math.sqrt(query.shape[-1]), MASKED_LOGIT)",
        "jnp.where(mask, logits, MASKED_LOGIT)",
        _LOCAL,
    ),
    _mutant(
        "summaries",
        "summaries use tokens of other documents",
        "token_mask = (block_ids == alive[:, :, None]) & (alive[:, :, None] != 0)",
        "token_mask = (block_ids != 0) & (alive[:, :, None] != 0)",
        (f"{_ATTENTION}test_summaries_equal_the_oracle[inside blocks]",),
    ),
    _mutant(
        "summaries",
        "a block that ends in padding has summaries",
        "token_mask = (block_ids == alive[:, :, None]) & (alive[:, :, None] != 0)",
        "token_mask = block_ids == alive[:, :, None]",
        (f"{_ATTENTION}test_summaries_equal_the_oracle[padding]",),
    ),
    _mutant(
        "summaries",
        "position weights are lost",
        "logits = logits / math.sqrt(key.shape[-1]) + bias",
        "logits = logits / math.sqrt(key.shape[-1]) + 0.0 * bias",
        (f"{_ATTENTION}test_summaries_equal_the_oracle[one document]",),
    ),
    _mutant(
        "attention_cache",
        "the current block is taken from the start of the prompt",
        "starts = (lengths // block_size) * block_size",
        "starts = (lengths // block_size) * 0",
        _DECODING,
    ),
    _mutant(
        "attention_cache",
        "all rows write to one slot",
        "slots = jnp.arange(key.shape[0]), positions % cache.key.shape[2]",
        "slots = jnp.arange(key.shape[0]), positions[0] % cache.key.shape[2]",
        _DECODING,
    ),
    _mutant(
        "attention_cache",
        "a decoded token does not see itself",
        "seen = jnp.arange(block_size)[None] <= slot[:, None]",
        "seen = jnp.arange(block_size)[None] < slot[:, None]",
        _DECODING,
    ),
    _mutant(
        "attention_cache",
        "the current block's summaries are seen while decoding",
        "earlier = jnp.arange(num_blocks)[None] < block_index[:, None]",
        "earlier = jnp.arange(num_blocks)[None] <= block_index[:, None]",
        _DECODING,
    ),
    _mutant(
        "attention_cache",
        "a full block is pooled as if it were rotated the other way",
        "rope.rotate(key, -slots, base=rope_base)",
        "rope.rotate(key, slots, base=rope_base)",
        _DECODING,
    ),
    _mutant(
        "attention_cache",
        "summaries are written one token early",
        "positions % block_size == block_size - 1",
        "positions % block_size == block_size - 2",
        _DECODING,
    ),
    _mutant(
        "rope",
        "rotation the other way",
        "[low * cos - high * sin, low * sin + high * cos]",
        "[low * cos + high * sin, high * cos - low * sin]",
        (f"{_SMALL}test_rotation_by_hand",),
    ),
    _mutant(
        "norm",
        "the mean is subtracted",
        "mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)",
        "mean_square = jnp.var(x32, axis=-1, keepdims=True)",
        (f"{_SMALL}test_rms_norm_by_hand",),
    ),
    _mutant(
        "sampling",
        "the nucleus ends before it is full",
        "before < top_p",
        "before + ranked < top_p",
        (f"{_SMALL}test_nucleus_keeps_the_smallest_sufficient_set",),
    ),
    _mutant(
        "sampling",
        "temperature multiplies",
        "logits = logits / temperature",
        "logits = logits * temperature",
        (f"{_SMALL}test_temperature_scales_the_odds",),
    ),
)
