"""Mutants of generation and of the weights that its steps read."""

from tests.mutants.mutant import mutant_of

MUTANTS = (
    mutant_of(
        "deepseek_jax/decoding/generate.py",
        "each step cuts its layers out of all",
        'model.apply(variables, tokens, cache, weights, method="step")',
        'model.apply(variables, tokens, cache, method="step")',
        "test_no_step_cuts_a_layer_out_of_all_or_rounds_the_experts",
    ),
    mutant_of(
        "deepseek_jax/nn/parameters.py",
        "what is used in float32 is rounded too",
        "return leaf.astype(dtype) if names in _ROUNDED else leaf",
        "return leaf.astype(dtype) if leaf.ndim > 2 else leaf",
        "test_rounding_changes_no_bit_of_the_logits",
    ),
    mutant_of(
        "deepseek_jax/nn/parameters.py",
        "attention's projections are not rounded",
        '*itertools.product(["query", "key", "value", "out"], ["kernel"]),',
        "",
        "test_all_matrices_are_rounded_but_what_is_used_in_float32",
    ),
    mutant_of(
        "deepseek_jax/nn/model.py",
        "every layer of a step is the first",
        "tuple(_layer(stacked, index) for index in range(self.spec.num_layers))",
        "tuple(_layer(stacked, 0 * index) for index in range(self.spec.num_layers))",
        "test_cached_decoding_equals_the_full_pass_at_every_position",
    ),
)
