"""Mutants of the mesh, its rules, and experts on many devices."""

from tests.mutants.mutant import mutant_of

_EXCHANGE = "deepseek_jax/parallel/exchange.py"
_EXPERT_PARALLEL = "deepseek_jax/parallel/expert_parallel.py"
_RULES = "deepseek_jax/parallel/rules.py"
_PLACEMENT = "deepseek_jax/parallel/placement.py"
_WHOLE = "deepseek_jax/parallel/whole_matrices.py"
_PROGRAM = "deepseek_jax/parallel/program.py"
_MESH_SPEC = "deepseek_jax/core/mesh_spec.py"
_MOE = "deepseek_jax/ops/moe.py"

_ON_EIGHT = "test_exact_equals_the_reference[2x2x2]"
_VISITS = "test_expected_visits_are_the_mean_over_all_choices"
_ROUTED = "test_expected_visits_are_those_of_the_router_where_groups_are_limited"


MUTANTS = (
    mutant_of(
        _EXCHANGE,
        "a row for each expert of a token on a device",
        "jnp.where(first == columns, owners, num_devices)",
        "jnp.where(first <= columns, owners, num_devices)",
        "test_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "experts dealt out to devices in turn",
        "owners = expert_ids // experts_per_device",
        "owners = expert_ids % num_devices",
        "test_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "global ids at the destination",
        "sent % experts_per_device, experts_per_device)",
        "sent, experts_per_device)",
        "test_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "experts of other devices answer too",
        "(sent >= 0) & (sent // experts_per_device == destination)",
        "sent >= 0",
        "test_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "destinations interleaved",
        "[:, None] // capacity",
        "[:, None] % num_devices",
        "test_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "best choice not first on the way",
        "return jnp.argmax(same, axis=-1).astype(jnp.int32)",
        "last = jnp.argmax(same[..., ::-1], axis=-1)\n"
        "    return (same.shape[-1] - 1 - last).astype(jnp.int32)",
        "test_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "order of choices lost",
        "        destinations, token_mask, num_experts=num_devices",
        "        jnp.sort(destinations, axis=1), token_mask, num_experts=num_devices",
        "test_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "visits counted as dropped assignments",
        "Exchange(plan, local_ids, num_visits, plan.num_dropped, num_dropped)",
        "Exchange(plan, local_ids, num_visits, plan.num_dropped, plan.num_dropped)",
        "test_one_visit_without_a_row_drops_all_its_assignments",
    ),
    mutant_of(
        _EXCHANGE,
        "padding visits",
        "jnp.sum(token_mask[:, None] & (destinations < num_devices)",
        "jnp.sum(destinations < num_devices",
        "test_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "rows rounded down",
        "math.ceil(mesh.rows_factor * num_tokens * visits / mesh.expert)",
        "int(mesh.rows_factor * num_tokens * visits / mesh.expert)",
        "test_rows_per_destination_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "more rows than tokens",
        "min(num_tokens, math.ceil(mesh.rows_factor * num_tokens * visits / mesh.expert))",
        "math.ceil(mesh.rows_factor * num_tokens * visits / mesh.expert)",
        "test_rows_per_destination_by_hand",
    ),
    mutant_of(
        _EXCHANGE,
        "closed groups may be chosen from",
        "np.argsort(np.where(allowed, -scores, np.inf), axis=-1)",
        "np.argsort(-scores, axis=-1)",
        f"{_ROUTED}[(32, 8, 2, 4)-8-softmax]",
    ),
    mutant_of(
        _EXCHANGE,
        "one expert a device where there are more",
        "others = model.num_experts - experts_per_device",
        "others = model.num_experts - 1",
        _VISITS,
    ),
    mutant_of(
        _EXPERT_PARALLEL,
        "sum over model lost",
        "x = jax.lax.psum(summed, rules.MODEL)",
        "x = summed",
        _ON_EIGHT,
    ),
    mutant_of(
        _EXPERT_PARALLEL,
        "mean over model",
        "x = jax.lax.psum(summed, rules.MODEL)",
        "x = jax.lax.pmean(summed, rules.MODEL)",
        _ON_EIGHT,
    ),
    mutant_of(
        _EXPERT_PARALLEL,
        "routing weights stay at home",
        "_all_to_all(dispatch.dispatch(routing.weights, sent.plan))",
        "dispatch.dispatch(routing.weights, sent.plan)",
        _ON_EIGHT,
    ),
    mutant_of(
        _EXPERT_PARALLEL,
        "expert ids stay at home",
        "received_ids = _all_to_all(sent.local_ids)",
        "received_ids = sent.local_ids",
        _ON_EIGHT,
    ),
    mutant_of(
        _EXPERT_PARALLEL,
        "answers stay away",
        "returned = _all_to_all(answer.x)",
        "returned = answer.x",
        _ON_EIGHT,
    ),
    mutant_of(
        _EXPERT_PARALLEL,
        "answers weighted twice",
        "dispatch.combine(returned, ones, sent.plan)",
        "dispatch.combine(returned, varying.like(routing.weights, returned), sent.plan)",
        _ON_EIGHT,
    ),
    mutant_of(
        _EXPERT_PARALLEL,
        "a row answered only if all its experts are here",
        "jnp.any(received_ids < experts_per_device, axis=-1)",
        "jnp.all(received_ids < experts_per_device, axis=-1)",
        _ON_EIGHT,
    ),
    mutant_of(
        _EXPERT_PARALLEL,
        "matrices gathered on the wrong axis",
        "gate=_gathered(weights.gate, axis=1)",
        "gate=_gathered(weights.gate, axis=2)",
        _ON_EIGHT,
    ),
    mutant_of(
        _EXPERT_PARALLEL,
        "drops at the expert not counted",
        "num_dropped = answer.num_dropped + sent.num_dropped",
        "num_dropped = sent.num_dropped",
        "test_local_capacity_drops_are_counted_with_those_on_the_way",
    ),
    mutant_of(
        _RULES,
        "rows cut over data only",
        "ROWS = (DATA, EXPERT)",
        "ROWS = (DATA,)",
        "test_every_mesh_axis_cuts_its_share",
    ),
    mutant_of(
        _RULES,
        "experts whole along data",
        '"expert_embed": (DATA,)',
        '"expert_embed": ()',
        "test_table_by_hand",
    ),
    mutant_of(
        _RULES,
        "collisions not noticed",
        "            used[axis] = str(name)\n",
        "            used[str(name)] = str(name)\n",
        "test_an_axis_cuts_one_dimension_only",
    ),
    mutant_of(
        _PLACEMENT,
        "a process takes its rows by their place in the batch",
        "array[np.searchsorted(part, wanted)]",
        "array[wanted % len(part)]",
        "test_a_process_has_the_rows_of_its_devices_once",
    ),
    mutant_of(
        _WHOLE,
        "all devices keep the first part",
        "jax.lax.axis_index(axes) * length",
        "jax.lax.axis_index(axes) * 0",
        "test_equals_the_function_and_sends_what_it_must",
    ),
    mutant_of(
        _WHOLE,
        "every device computes all matrices",
        "if part.shape[stack] % size == 0:",
        "if part.shape[stack] % size < 0:",
        "test_equals_the_function_and_sends_what_it_must",
    ),
    mutant_of(
        _PROGRAM,
        "a loop counted once",
        "inner = times * int(known[1]) if",
        "inner = times if",
        "test_loops_multiply_and_what_is_not_called_does_not_run",
    ),
    mutant_of(
        _PROGRAM,
        "operands of a started transfer counted",
        "shapes = arrays[len(arrays) // 2 :]",
        "shapes = arrays",
        "test_bytes_are_those_of_the_results",
    ),
    mutant_of(
        _MESH_SPEC,
        "devices with parts of two groups",
        "if model.num_groups % mesh.expert and mesh.expert % model.num_groups:",
        "if model.num_groups % mesh.expert and mesh.expert < model.num_groups:",
        "test_every_misfit_is_named",
    ),
    mutant_of(
        _MESH_SPEC,
        "rows divisible by data only",
        "divides(shards, mesh.num_row_shards, rows, num_rows)",
        "divides(shards, mesh.data, rows, num_rows)",
        "test_every_misfit_is_named",
    ),
    mutant_of(
        _MESH_SPEC,
        "smaller meshes before those of all devices",
        "abs(math.log(other.num_devices / num_devices)),",
        "math.log(other.num_devices / num_devices),",
        "test_too_few_devices_are_refused",
        "test_fitting_meshes_are_all_that_fit_and_the_nearest_come_first",
    ),
    mutant_of(
        _MOE,
        "capacity rounded down",
        "math.ceil(factor * num_assignments / num_experts)",
        "int(factor * num_assignments / num_experts)",
        "test_capacity_is_a_factor_of_the_equal_share_rounded_up",
    ),
    mutant_of(
        _MOE,
        "factor of the capacity lost",
        "math.ceil(factor * num_assignments / num_experts)",
        "math.ceil(num_assignments / num_experts)",
        "test_an_id_of_none_neither_answers_nor_learns_nor_drops",
    ),
)
