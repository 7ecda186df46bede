"""Mutants of what the stages on spans, preferences and descriptions are made of."""

from tests.mutants.mutant import mutant_of

_CONTRASTIVE = "deepseek_jax/objectives/contrastive.py"
_SPANS = "deepseek_jax/data/spans.py"
_PREFERENCES = "deepseek_jax/data/preferences.py"
_RETRIEVAL = "deepseek_jax/evaluation/retrieval.py"
_CONDITIONING = "deepseek_jax/nn/conditioning.py"
_DESCRIPTION = "deepseek_jax/nn/description.py"
_STEERED = "deepseek_jax/nn/steered.py"
_SHARES = "deepseek_jax/steering/shares.py"
_BATCHES = "deepseek_jax/steering/batches.py"
_STEP = "deepseek_jax/training/step.py"


_STEERED_TEST = "tests/nn/steered_test.py::"
_STAGE_TEST = "tests/steering/stage_test.py::"

MUTANTS = (
    mutant_of(
        _CONTRASTIVE,
        "pairs of one group are negatives",
        "seen = is_other | jnp.eye(len(groups), dtype=bool)",
        "seen = jnp.ones_like(is_other)",
        "test_pairs_of_one_group_are_no_negatives",
    ),
    mutant_of(
        _CONTRASTIVE,
        "the partner is masked with its group",
        "seen = is_other | jnp.eye(len(groups), dtype=bool)",
        "seen = is_other",
        "test_info_nce_by_hand",
    ),
    mutant_of(
        _CONTRASTIVE,
        "InfoNCE from one side",
        "jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)",
        "2.0 * jax.nn.logsumexp(logits, axis=1)",
        "test_both_directions_count",
    ),
    mutant_of(
        _CONTRASTIVE,
        "temperature for its inverse",
        "logits = scale * jnp.einsum",
        "logits = 1.0 / scale * jnp.einsum",
        "test_info_nce_by_hand",
    ),
    mutant_of(
        _CONTRASTIVE,
        "both sides summed, not halved",
        "return 0.5 * both",
        "return both",
        "test_info_nce_by_hand",
    ),
    mutant_of(
        _CONTRASTIVE,
        "uniformity counts a row with itself",
        "jnp.where(jnp.eye(num, dtype=bool), -jnp.inf, -4.0 * (1.0 - cosines))",
        "-4.0 * (1.0 - cosines)",
        "test_alignment_and_uniformity_by_hand",
    ),
    mutant_of(
        "deepseek_jax/contrastive/step.py",
        "every span of the batch is of a group of its own",
        "contrastive.info_nce_terms(first, second, output.scale, groups)",
        "contrastive.info_nce_terms(first, second, output.scale, jnp.arange(len(groups)))",
        "tests/contrastive/stage_test.py::test_what_is_of_one_group_is_no_negative",
    ),
    mutant_of(
        _SPANS,
        "spans overlap",
        "[lower, upper + span_length]",
        "[lower, upper]",
        "test_spans_fit_and_never_overlap",
    ),
    mutant_of(
        _SPANS,
        "the second span runs past the end",
        "slack = lengths - 2 * span_length",
        "slack = lengths - span_length",
        "test_spans_fit_and_never_overlap",
    ),
    mutant_of(
        _SPANS,
        "the first span always stands in front",
        "return np.where(swap[:, None], starts[:, ::-1], starts)",
        "return starts",
        "test_every_place_is_equally_likely",
    ),
    mutant_of(
        _SPANS,
        "the same places at every step",
        "default_rng([seed, 1, step])",
        "default_rng([seed, 1])",
        "test_every_step_draws_places_anew",
    ),
    mutant_of(
        _SPANS,
        "partners of other documents",
        "for i, start in zip(ids, starts[:, side], strict=True)",
        "for i, start in zip(np.roll(ids, side), starts[:, side], strict=True)",
        "test_batches_are_of_one_document_each_and_know_their_step",
    ),
    mutant_of(
        _SPANS,
        "every document is a group",
        "numbers.setdefault(documents[i].group,",
        "numbers.setdefault(documents[i].name,",
        "test_code_and_prose_of_a_module_are_one_group",
    ),
    mutant_of(
        _PREFERENCES,
        "split by pair",
        "return group_ids < num_heldout",
        "return np.arange(len(group_ids)) < num_heldout",
        "test_no_opening_is_on_both_sides_whatever_the_order",
    ),
    mutant_of(
        _PREFERENCES,
        "a later turn is another opening",
        "text.partition(REPLY)[0].casefold()",
        "text.rpartition(REPLY)[0].casefold()",
        "test_continuations_of_a_conversation_are_one_group",
    ),
    mutant_of(
        _PREFERENCES,
        "spelling makes another opening",
        "[0].casefold()",
        "[0]",
        "test_continuations_of_a_conversation_are_one_group",
    ),
    mutant_of(
        _PREFERENCES,
        "punctuation makes another opening",
        "_WORD.findall(text.partition(REPLY)[0].casefold())",
        "text.partition(REPLY)[0].casefold().split()",
        "test_continuations_of_a_conversation_are_one_group",
    ),
    mutant_of(
        _PREFERENCES,
        "the rejected side's opening is not looked at",
        "for text in (pair.chosen, pair.rejected))",
        "for text in (pair.chosen, pair.chosen))",
        "test_sides_that_open_differently_join_their_groups",
    ),
    mutant_of(
        _RETRIEVAL,
        "ties counted as wins",
        "before = ~(scores < own)",
        "before = scores > own",
        "test_a_method_that_tells_nothing_apart_finds_nothing",
    ),
    mutant_of(
        _RETRIEVAL,
        "what is no number wins",
        "before = ~(scores < own)",
        "before = scores >= own",
        "test_what_is_no_number_finds_nothing",
    ),
    mutant_of(
        _RETRIEVAL,
        "a span is a candidate for itself",
        "    before[queries, queries] = False\n",
        "",
        "test_ranks_by_hand",
    ),
    mutant_of(
        _RETRIEVAL,
        "resamples of documents, not of groups",
        "np.unique(groups, return_inverse=True)",
        "np.unique(np.arange(len(groups)), return_inverse=True)",
        "test_the_interval_is_of_groups",
    ),
    mutant_of(
        _RETRIEVAL,
        "BM25 without the length",
        "_B * lengths / lengths.mean()",
        "_B",
        "test_bm25_by_hand",
    ),
    mutant_of(
        _CONDITIONING,
        "modulation without its shift",
        "return x * (1 + scale) + shift",
        "return x * (1 + scale)",
        "test_modulation_by_hand",
    ),
    mutant_of(
        _CONDITIONING,
        "scale without the one",
        "x * (1 + scale)",
        "x * scale",
        f"{_STEERED_TEST}test_a_new_task_vector_changes_nothing",
    ),
    mutant_of(
        _CONDITIONING,
        "router's shift dealt out in turn",
        "jnp.repeat(shift, length, axis=0)",
        "jnp.tile(shift, (length, 1))",
        "test_each_row_shifts_its_own_tokens",
    ),
    mutant_of(
        _CONDITIONING,
        "a task vector that acts at once",
        "nn.initializers.zeros",
        "nn.initializers.normal(1.0)",
        f"{_STEERED_TEST}test_a_new_task_vector_changes_nothing",
    ),
    mutant_of(
        "deepseek_jax/nn/router.py",
        "the shift never reaches the router",
        "logits += shift",
        "logits += 0.0 * shift",
        f"{_STEERED_TEST}test_the_gradient_reaches_the_encoder_through_each_part_alone",
    ),
    mutant_of(
        "deepseek_jax/nn/block.py",
        "attention is not modulated",
        'conditioning.modulate(self._normed("attention_norm", x), told.attention)',
        'self._normed("attention_norm", x)',
        f"{_STEERED_TEST}test_the_gradient_reaches_the_encoder_through_each_part_alone",
    ),
    mutant_of(
        _DESCRIPTION,
        "padding is read",
        "jnp.where(is_token[..., None], embedding[tokens] + positions[None], 0.0)",
        "embedding[tokens] + positions[None]",
        "test_padding_changes_nothing",
    ),
    mutant_of(
        _DESCRIPTION,
        "padding is read from the second layer on",
        "            x = jnp.where(is_token[..., None], x, 0.0)\n",
        "",
        "test_padding_changes_nothing",
    ),
    mutant_of(
        _DESCRIPTION,
        "padding has weight",
        "kept = is_token[..., None]",
        "kept = jnp.ones_like(is_token[..., None])",
        "test_padding_changes_nothing",
    ),
    mutant_of(
        _DESCRIPTION,
        "no positions",
        "embedding[tokens] + positions[None]",
        "embedding[tokens] + 0.0 * positions[None]",
        "test_equal_tokens_have_their_own_place",
    ),
    mutant_of(
        _DESCRIPTION,
        "a padded description is missing",
        "~jnp.any(is_token",
        "~jnp.all(is_token",
        f"{_STEERED_TEST}test_order_and_absence_are_told_apart",
    ),
    mutant_of(
        _STEERED,
        "descriptions dealt out in turn",
        "jnp.repeat(vectors, len(tokens) // len(vectors), axis=0)",
        "jnp.tile(vectors, (len(tokens) // len(vectors), 1))",
        f"{_STEERED_TEST}test_a_description_is_for_consecutive_rows",
    ),
    mutant_of(
        _BATCHES,
        "no description is left out",
        "np.where(is_missing[:, None], encoded.PADDING, description)",
        "description",
        f"{_STAGE_TEST}test_a_batch_follows_from_seed_and_step_and_some_descriptions_are_missing",
    ),
    mutant_of(
        _BATCHES,
        "tasks dealt out in turn",
        "np.repeat(task_ids, spec.tasks.inputs_per_description)",
        "np.tile(task_ids, spec.tasks.inputs_per_description)",
        f"{_STAGE_TEST}test_a_description_tells_the_task_of_its_rows",
    ),
    mutant_of(
        _BATCHES,
        "what fills up the last batch counts",
        " & (np.arange(len(places)) < num_rows)",
        "",
        f"{_STAGE_TEST}test_every_task_counts_once_on_every_heldout_input",
    ),
    mutant_of(
        _SHARES,
        "intervals over answers",
        "if 1 < len(units) < wilson.num:",
        "if wilson.num < 1:",
        "test_the_width_is_that_of_descriptions",
    ),
    mutant_of(
        _SHARES,
        "sentences weigh alike, however often they were asked",
        "np.bincount(owner), seed",
        "np.full(len(units), len(owner) // len(units)), seed",
        "test_descriptions_weigh_as_many_answers_as_they_have",
    ),
    mutant_of(
        _STEP,
        "one finite number is enough",
        "jnp.all(jnp.stack([jnp.isfinite(value) for value in values]))",
        "jnp.any(jnp.stack([jnp.isfinite(value) for value in values]))",
        "test_one_number_that_is_not_finite_keeps_the_whole_old_state",
    ),
    mutant_of(
        _STEP,
        "sum of what is told overflows",
        "jnp.all(jnp.stack([jnp.isfinite(value) for value in values]))",
        "jnp.isfinite(sum(values))",
        "test_one_number_that_is_not_finite_keeps_the_whole_old_state",
    ),
)
