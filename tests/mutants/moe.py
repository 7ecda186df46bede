"""Mutants of dispatch and experts."""

from tests.mutants.mutant import mutant_of

_DISPATCH = "deepseek_jax/ops/dispatch.py"
_GROUPED = "deepseek_jax/ops/grouped_swiglu.py"
_SWIGLU = "deepseek_jax/ops/swiglu.py"
_EXPERTS = "deepseek_jax/ops/experts.py"
_FEED_FORWARD = "deepseek_jax/nn/feed_forward.py"
_RULE_TEST = (
    "tests/nn/model_test.py::test_on_nvidia_auto_computes_few_experts_of_float32_all_at_once"
)


MUTANTS = (
    mutant_of(
        _DISPATCH,
        "one row too many for an expert",
        "(rank < capacity)",
        "(rank <= capacity)",
        "test_first_choices_come_before_second_choices",
    ),
    mutant_of(
        _DISPATCH,
        "one row too few for an expert",
        "(rank < capacity)",
        "(rank < capacity - 1)",
        "test_first_choices_come_before_second_choices",
    ),
    mutant_of(
        _DISPATCH,
        "dropped not counted",
        "jnp.sum(dropped, dtype=jnp.int32),",
        "jnp.int32(0),",
        "test_first_choices_come_before_second_choices",
    ),
    mutant_of(
        _DISPATCH,
        "padding counted as dropped",
        "dropped = (owners < num_experts) & (rank >= capacity)",
        "dropped = ~kept",
        "test_padding_takes_no_seat_and_is_not_dropped",
    ),
    mutant_of(
        _DISPATCH,
        "padding takes seats of the capacity",
        "jnp.where(token_mask[:, None], expert_ids, num_experts).T.reshape(-1)",
        "expert_ids.T.reshape(-1)",
        "test_padding_takes_no_seat_and_is_not_dropped",
    ),
    mutant_of(
        _DISPATCH,
        "padding gets dropless rows",
        "jnp.where(token_mask[:, None], expert_ids, num_experts).reshape(-1)",
        "expert_ids.reshape(-1)",
        "PlanTest::test_dropless_laws__with_jit",
    ),
    mutant_of(
        _DISPATCH,
        "the key of a sort forgets the order of tokens",
        "jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)",
        "jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)[::-1]",
        "test_assignments_of_an_owner_keep_their_order",
    ),
    mutant_of(
        _DISPATCH,
        "keys that are too large for their number",
        "if (num_experts + 1) * size <= _KEYS_END:",
        "if True:",
        "test_assignments_of_an_owner_keep_their_order",
    ),
    mutant_of(
        _DISPATCH,
        "rows of one block filled by choices in place of tokens",
        "jnp.where(has_row, ordered.assignment // top_k, num_tokens)[:num_rows]",
        "jnp.where(has_row, ordered.assignment % num_tokens, num_tokens)[:num_rows]",
        "PlanTest::test_dropless_laws__with_jit",
    ),
    mutant_of(
        _DISPATCH,
        "groups rounded down",
        "(ordered.counts + block_rows - 1) // block_rows * block_rows",
        "ordered.counts // block_rows * block_rows",
        "test_dropless_plan_by_hand",
    ),
    mutant_of(
        _DISPATCH,
        "too few rows in the worst case",
        "num_assignments + min(num_experts, num_assignments) * (block_rows - 1)",
        "num_assignments + block_rows - 1",
        "test_the_worst_routing_has_rows",
    ),
    mutant_of(
        _DISPATCH,
        "combine forgets the weights",
        "weight[:, None] * take_rows(rows, ids)",
        "take_rows(rows, ids)",
        "test_combine_by_hand",
    ),
    mutant_of(
        _DISPATCH,
        "backward of combine forgets the weights",
        ".astype(jnp.float32) * row_weights(weights, plan)",
        ".astype(jnp.float32)",
        "test_combine_by_hand",
    ),
    mutant_of(
        _DISPATCH,
        "rows weighed by the first choice only",
        "jnp.where(mine, token_weights, 0.0)",
        "jnp.where(mine, token_weights[:, :1], 0.0)",
        "test_combine_by_hand",
    ),
    mutant_of(
        _DISPATCH,
        "backward of dispatch misses rows",
        "summed_rows(d_rows, row_ids=plan.row_ids)",
        "summed_rows(d_rows, row_ids=plan.row_ids[:, :1])",
        "test_low_precision_adds_up_in_float32",
    ),
    mutant_of(
        _DISPATCH,
        "nobody's row is the last row",
        "is_there = (ids < x.shape[0])[:, None]",
        "is_there = (ids < x.shape[0] + 1)[:, None]",
        "test_combine_by_hand",
    ),
    mutant_of(
        _DISPATCH,
        "sums in low precision",
        "take_rows(rows, ids).astype(jnp.float32)\n    return total",
        "take_rows(rows, ids).astype(jnp.float32)\n"
        "        total = total.astype(rows.dtype).astype(jnp.float32)\n    return total",
        "test_low_precision_adds_up_in_float32",
    ),
    mutant_of(
        _GROUPED,
        "border block given to the group before",
        'side="right"',
        'side="left"',
        "test_by_hand",
    ),
    mutant_of(
        _GROUPED,
        "last block left out",
        "fori_loop(0, num_used, step, out)",
        "fori_loop(0, num_used - 1, step, out)",
        "test_by_hand",
    ),
    mutant_of(
        _GROUPED,
        "blocks behind the last group computed",
        "fori_loop(0, num_used, step, out)",
        "fori_loop(0, rows.shape[0] // block_rows, step, out)",
        "test_rows_behind_the_last_group_neither_answer_nor_teach",
    ),
    mutant_of(
        _GROUPED,
        "blocks behind the last group teach",
        "fori_loop(0, num_used, step, totals)",
        "fori_loop(0, rows.shape[0] // block_rows, step, totals)",
        "test_rows_behind_the_last_group_neither_answer_nor_teach",
    ),
    mutant_of(
        _GROUPED,
        "gate used twice in the dropless path",
        "[gate[expert], up[expert]]",
        "[gate[expert], gate[expert]]",
        "test_by_hand",
    ),
    mutant_of(
        _GROUPED,
        "gradients of gate and up exchanged",
        "d_gate, d_up = jnp.split",
        "d_up, d_gate = jnp.split",
        "test_low_precision_stays_near_its_oracle",
    ),
    mutant_of(
        _GROUPED,
        "gradient of gate and up from the last block only",
        ".add(_outer(x, d_both))",
        ".set(_outer(x, d_both))",
        "test_gradients_of_matrices_add_up_in_float32",
    ),
    mutant_of(
        _GROUPED,
        "gradient of down from the last block only",
        ".add(_outer(hidden, d_answers))",
        ".set(_outer(hidden, d_answers))",
        "test_gradients_of_matrices_add_up_in_float32",
    ),
    mutant_of(
        _SWIGLU,
        "gate and up exchanged",
        "jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)",
        "jax.nn.silu(up.astype(jnp.float32)) * gate.astype(jnp.float32)",
        "test_gate_by_hand",
    ),
    mutant_of(
        _SWIGLU,
        "gate rounded before it multiplies",
        "jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)",
        "jax.nn.silu(gate) * up",
        "test_low_precision_rounds_once",
    ),
    mutant_of(
        _EXPERTS,
        "experts of the capacity path interleaved",
        "rows_ecd = rows.reshape(num_experts, -1, rows.shape[1])",
        "rows_ecd = rows.reshape(-1, num_experts, rows.shape[1]).swapaxes(0, 1)",
        "test_gradient_reaches_the_gate",
    ),
    mutant_of(
        _EXPERTS,
        "padding answers in the reference",
        "jnp.where(token_mask[:, None], mixture, 0.0)",
        "mixture",
        "test_reference_by_hand",
    ),
    mutant_of(
        _FEED_FORWARD,
        "few experts of any dtype have no kernel",
        "kernel in matmul.ON_NVIDIA and are_few and rows.dtype == jnp.float32",
        "kernel in matmul.ON_NVIDIA and are_few",
        _RULE_TEST,
    ),
    mutant_of(
        _FEED_FORWARD,
        "many experts of float32 have no kernel",
        "kernel in matmul.ON_NVIDIA and are_few and rows.dtype == jnp.float32",
        "kernel in matmul.ON_NVIDIA and rows.dtype == jnp.float32",
        _RULE_TEST,
    ),
    mutant_of(
        _FEED_FORWARD,
        "a TPU computes all of few experts",
        "kernel in matmul.ON_NVIDIA and are_few and rows.dtype == jnp.float32",
        "are_few and rows.dtype == jnp.float32",
        _RULE_TEST,
    ),
)
