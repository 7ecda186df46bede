"""Mutants of the kernels of flash attention."""

from tests.mutants.mutant import Mutant

_FLASH = "deepseek_jax/ops/flash"
_VALUES = "tests/ops/flash/attention_test.py::test_answers_and_gradients_are_those_of_float64"
_SPANS = "tests/ops/flash/spans_test.py::"


def _mutant(file: str, name: str, snippet: str, replacement: str, test: str) -> Mutant:
    return Mutant(
        name=name,
        path=f"{_FLASH}/{file}.py",
        snippet=snippet,
        replacement=replacement,
        tests=(test,),
    )


MUTANTS = (
    _mutant(
        "triton",
        "powers of 2 without the logarithm",
        "return math.log2(math.e) / math.sqrt(self.head_dim)",
        "return 1.0 / math.sqrt(self.head_dim)",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "triton",
        "the tile of the diagonal shows what comes later",
        "is_past = rows.position[:, None] >= columns.position[None, :]\n"
        "            logits = jnp.where(is_own & is_past, logits, softmax_parts.MASKED_LOGIT)\n"
        "        new =",
        "is_past = rows.position[:, None] >= 0 * columns.position[None, :]\n"
        "            logits = jnp.where(is_own & is_past, logits, softmax_parts.MASKED_LOGIT)\n"
        "        new =",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "triton",
        "a key's gradient has none of its own query",
        "is_past = columns.position[:, None] <= rows.position[None, :]",
        "is_past = columns.position[:, None] < rows.position[None, :]",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "triton",
        "padding sees padding",
        "is_own = (ids[:, None] == column_ids[None, :]) & (ids[:, None] != 0)\n"
        "            is_past = rows.position[:, None] >= columns.position[None, :]\n"
        "            logits = jnp.where(is_own & is_past, logits, softmax_parts.MASKED_LOGIT)\n"
        "        new =",
        "is_own = ids[:, None] == column_ids[None, :]\n"
        "            is_past = rows.position[:, None] >= columns.position[None, :]\n"
        "            logits = jnp.where(is_own & is_past, logits, softmax_parts.MASKED_LOGIT)\n"
        "        new =",
        f"{_VALUES}[padding-float32]",
    ),
    _mutant(
        "triton",
        "a sum keeps the scale of an earlier tile",
        "weight_sum = weight_sum * shrink + jnp.sum(weights, axis=1)",
        "weight_sum = weight_sum + jnp.sum(weights, axis=1)",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "triton",
        "no delta in the gradient of queries",
        "d_logits = weights * (_dot(d_out, v.T) - deltas[:, None])",
        "d_logits = weights * _dot(d_out, v.T)",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "triton",
        "no delta in the gradient of keys",
        "d_logits = weights * (_dot(v, d_out.T) - deltas[None, :])",
        "d_logits = weights * _dot(v, d_out.T)",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "triton",
        "a key's gradient is of one query head",
        "head = kv_head * num_in_group + within",
        "head = kv_head * num_in_group + 0 * within",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "triton",
        "rows past the end are loaded",
        "self._is_inside = self.position < length if length % size else None",
        "self._is_inside = None",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "triton",
        "masked tiles behind the whole ones are those before",
        "jnp.where(i < num_before, first, whole_stop - num_before)",
        "first",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "spans",
        "a tile of one document and padding is whole",
        "is_one = (low == high) & (key_low == key_high) & is_full & key_is_full",
        "is_one = (low == high) & (key_low == key_high) & is_full",
        f"{_SPANS}test_padding_between_tokens_is_masked[sizes0]",
    ),
    _mutant(
        "spans",
        "tiles of several documents are whole",
        "is_one = (low == high) & (key_low == key_high) & is_full & key_is_full",
        "is_one = is_full & key_is_full",
        f"{_VALUES}[inside tiles-float32]",
    ),
    _mutant(
        "spans",
        "the tile on the diagonal is whole",
        "(key_first + key_tile <= first + 1)",
        "(key_first <= first)",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "spans",
        "the last tile that meets is left out",
        "stop = jnp.max(jnp.where(meet, tile + 1, 0), axis=2)",
        "stop = jnp.max(jnp.where(meet, tile, 0), axis=2)",
        f"{_VALUES}[one document-float32]",
    ),
    _mutant(
        "spans",
        "tiles of other documents are visited",
        "meet = (low <= key_high) & (key_low <= high) & (key_first < first + query_tile)",
        "meet = key_first < first + query_tile",
        f"{_SPANS}test_no_tile_is_visited_or_masked_without_need[sizes0]",
    ),
    _mutant(
        "spans",
        "the run of whole tiles goes over a gap",
        "whole_start = jnp.max(jnp.where(breaks, tile + 1, 0), axis=2)",
        "whole_start = jnp.min(jnp.where(is_whole, tile, num_tiles), axis=2)",
        f"{_SPANS}test_any_numbers_in_any_order",
    ),
    _mutant(
        "attention",
        "gradients of keys and values change places",
        "return d_query, d_key, d_value, None",
        "return d_query, d_value, d_key, None",
        f"{_VALUES}[one document-float32]",
    ),
)
