"""Mutants of the objectives of policies and preferences."""

from tests.mutants.mutant import mutant_of

_MASKED = "deepseek_jax/objectives/masked.py"
_LINEAR = "deepseek_jax/objectives/linear_next_token.py"
_LOG_NORMS = "deepseek_jax/objectives/log_norms.py"
_POLICY = "deepseek_jax/objectives/policy.py"
_ADVANTAGES = "deepseek_jax/objectives/advantages.py"
_PPO = "deepseek_jax/objectives/ppo.py"
_KL = "deepseek_jax/objectives/kl.py"
_GRPO = "deepseek_jax/objectives/grpo.py"
_PREFERENCE = "deepseek_jax/objectives/preference.py"


MUTANTS = (
    mutant_of(
        _LOG_NORMS,
        "a sum relative to a maximum that has changed",
        "one[1] * jnp.exp(one[0] - most) +",
        "one[1] +",
        "test_beside_float64",
    ),
    mutant_of(
        "deepseek_jax/reinforcement/grpo.py",
        "the only update of GRPO takes the reference for the old policy",
        "old = logprobs if part.logprobs is None else",
        "old = part.reference_logprobs if part.logprobs is None else",
        "test_a_single_update_follows_the_gradient_at_the_old_policy",
    ),
    mutant_of(
        _MASKED,
        "row means over all rows",
        "masked_mean(sums / jnp.maximum(lengths, 1.0), lengths > 0.0)",
        "jnp.mean(sums / jnp.maximum(lengths, 1.0))",
        "test_short_rows_weigh_as_much_as_long_ones",
    ),
    mutant_of(
        _LINEAR,
        "gradient of the last chunk only",
        "d_kernel += jnp.einsum(",
        "d_kernel = jnp.einsum(",
        "test_by_hand",
    ),
    mutant_of(
        _LINEAR,
        "weights missing in the gradient",
        "0.0, weight * terms)",
        "0.0, terms)",
        "test_by_hand",
    ),
    mutant_of(
        _LINEAR,
        "gradient that does not know what follows",
        "return (d_kernel * scale).astype(dtype)",
        "return d_kernel.astype(dtype)",
        "test_by_hand",
    ),
    mutant_of(
        _LINEAR,
        "gradient without the target",
        "terms = probs - (symbols == targets[..., None]).astype(jnp.float32)",
        "terms = probs",
        "test_by_hand",
    ),
    mutant_of(
        _LINEAR,
        "what counts nothing reaches the loss",
        "weights * masked.zeroed(terms, weights != 0.0)",
        "weights * terms",
        "test_what_counts_nothing_may_be_infinite",
    ),
    mutant_of(
        _LINEAR,
        "chunks added up in the dtype of the products",
        "d_kernel += jnp.einsum(",
        "d_kernel = d_kernel.astype(hidden.dtype).astype(jnp.float32) + jnp.einsum(",
        "test_chunks_add_up_in_single_precision",
    ),
    mutant_of(
        _LINEAR,
        "chunks over the limit",
        "n <= max(most, 1)",
        "n <= most + length",
        "test_the_largest_divisor_that_fits",
    ),
    mutant_of(
        _POLICY,
        "entropy of barred tokens unguarded",
        "jnp.where(possible, jnp.exp(finite) * finite, 0.0)",
        "jnp.exp(logprobs) * logprobs",
        "test_entropies_by_hand",
    ),
    mutant_of(
        _ADVANTAGES,
        "lambda in the error of one step",
        "rewards + discount * next_values - values",
        "rewards + gae_lambda * next_values - values",
        "test_gae_by_hand",
    ),
    mutant_of(
        _ADVANTAGES,
        "discount forgotten in the trace",
        "delta + discount * gae_lambda * later",
        "delta + gae_lambda * later",
        "test_gae_by_hand",
    ),
    mutant_of(
        _ADVANTAGES,
        "value after the end of the response",
        "jnp.pad(values[:, 1:], ((0, 0), (0, 1)))",
        'jnp.pad(values[:, 1:], ((0, 0), (0, 1)), mode="edge")',
        "test_a_run_to_the_end_of_the_row_ends_there",
    ),
    mutant_of(
        _ADVANTAGES,
        "values outside the mask reach the last token",
        "rewards, values = masked.zeroed(rewards, mask), masked.zeroed(values, mask)",
        "rewards = masked.zeroed(rewards, mask)",
        "test_gae_by_hand",
    ),
    mutant_of(
        _ADVANTAGES,
        "scan from the front",
        "(deltas.T, mask.T), reverse=True)",
        "(deltas.T, mask.T))",
        "test_gae_by_hand",
    ),
    mutant_of(
        _ADVANTAGES,
        "whitening counts the padding",
        "masked.masked_mean(jnp.square(centred), mask)",
        "jnp.mean(jnp.square(centred))",
        "test_whitened_by_hand",
    ),
    mutant_of(
        _ADVANTAGES,
        "rounding of a constant whitened",
        "jnp.where(mask, masked.zeroed(x, mask) - least, 0.0)",
        "masked.zeroed(x, mask)",
        "test_whitening_a_constant_gives_exact_zeros",
    ),
    mutant_of(
        _ADVANTAGES,
        "deviation of the whole batch",
        "jnp.mean(jnp.square(centred), axis=1, keepdims=True)",
        "jnp.mean(jnp.square(centred), keepdims=True)",
        "test_group_advantages_by_hand",
    ),
    mutant_of(
        _ADVANTAGES,
        "groups of every n-th row",
        "groups = rewards.reshape(-1, group_size)",
        "groups = rewards.reshape(group_size, -1).T",
        "test_group_advantages_by_hand",
    ),
    mutant_of(
        _ADVANTAGES,
        "rounding of equal rewards scaled up",
        "above = groups - groups[:, :1]",
        "above = groups",
        "test_equal_rewards_of_a_group_give_exact_zeros",
    ),
    mutant_of(
        _PPO,
        "surrogate minimised",
        "return -jnp.minimum(",
        "return jnp.minimum(",
        "test_at_ratio_one_the_gradient_is_the_policy_gradient",
    ),
    mutant_of(
        _PPO,
        "maximum of the surrogates",
        "return -jnp.minimum(",
        "return -jnp.maximum(",
        "test_clipping_cuts_the_gradient_on_both_signs",
    ),
    mutant_of(
        _PPO,
        "ratio of the old to the new",
        "jnp.exp(logprobs - jax.lax.stop_gradient(old_logprobs))",
        "jnp.exp(jax.lax.stop_gradient(old_logprobs) - logprobs)",
        "test_surrogate_by_hand",
    ),
    mutant_of(
        _PPO,
        "clip fraction without the sign of the advantage",
        "(advantages < 0.0) & (ratio < 1.0 - clip)",
        "ratio < 1.0 - clip",
        "test_clipping_cuts_the_gradient_on_both_signs",
    ),
    mutant_of(
        _PPO,
        "the better of the value errors",
        "0.5 * jnp.maximum(errors,",
        "0.5 * jnp.minimum(errors,",
        "test_values_by_hand",
    ),
    mutant_of(
        _PPO,
        "values clipped around the return",
        "near = old_values + jnp.clip(values - old_values, -clip, clip)",
        "near = returns + jnp.clip(values - returns, -clip, clip)",
        "test_values_by_hand",
    ),
    mutant_of(
        _KL,
        "k3 of the other direction",
        "log_ratio = -kl_k1_terms(",
        "log_ratio = kl_k1_terms(",
        "test_estimators_by_hand",
    ),
    mutant_of(
        _KL,
        "k3 without expm1",
        "jnp.expm1(log_ratio) - log_ratio",
        "jnp.exp(log_ratio) - log_ratio - 1.0",
        "test_k3_keeps_small_differences",
    ),
    mutant_of(
        _KL,
        "distance rewarded",
        "jnp.where(is_last, final_rewards[:, None], 0.0) - masked",
        "jnp.where(is_last, final_rewards[:, None], 0.0) + masked",
        "test_rewards_by_hand",
    ),
    mutant_of(
        _KL,
        "score on the first token",
        "axis=1, reverse=True)",
        "axis=1, reverse=False)",
        "test_rewards_by_hand",
    ),
    mutant_of(
        _KL,
        "score on every token",
        "mask & (num_left == 1)",
        "mask",
        "test_rewards_by_hand",
    ),
    mutant_of(
        _KL,
        "absolute error of the KL",
        "(observed_kl - target) / target",
        "(observed_kl - target)",
        "test_coefficient_by_hand",
    ),
    mutant_of(
        _GRPO,
        "distance rewarded in the loss",
        "surrogate + kl_coefficient",
        "surrogate - kl_coefficient",
        "test_terms_by_hand",
    ),
    mutant_of(
        _PREFERENCE,
        "the rejected preferred",
        "softplus(rejected_logits - chosen_logits)",
        "softplus(chosen_logits - rejected_logits)",
        "test_bradley_terry_by_hand",
    ),
    mutant_of(
        _PREFERENCE,
        "logarithm of a sigmoid that underflows",
        "jax.nn.softplus(rejected_logits - chosen_logits)",
        "-jnp.log(jax.nn.sigmoid(chosen_logits - rejected_logits))",
        "test_huge_differences_are_finite",
    ),
)
