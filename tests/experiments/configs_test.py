"""Every preset and variant is a valid run, and has the sizes that it promises."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.core import accounting
from deepseek_jax.nn import model as model_lib
from experiments import presets, settings
from experiments.configs import contrastive

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "configs"
SPARSE = {  # file -> its variants
    "laptop": ("dense_active", "dense_total"),
    "gpu_small": ("capacity", "dense_active", "dense_total"),
    "r1_12b": ("top2", "capacity", "dense_active", "dense_total"),
}
STAGES = [
    *(("contrastive", name) for name in ("", *contrastive.VARIANTS, "dense_total")),
    ("preferences", ""),
    ("preferences", "laptop"),
]
VARIANTS = [
    *((name, variant) for name, variants in SPARSE.items() for variant in ("", *variants)),
    ("dense_12b", ""),
    *(("steering", variant) for variant in ("", "router_only", "blocks_only", "compositions")),
]


@functools.cache
def load(name, variant=""):
    return settings.freeze(settings.load_config(f"{FOLDER / name}.py:{variant}"))


def count(name, variant=""):
    return accounting.count_parameters(load(name, variant).model)


def test_every_file_is_tested():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert files == {name for name, _ in [*VARIANTS, *STAGES]}


@pytest.mark.parametrize(("name", "variant"), [*VARIANTS, *STAGES])
def test_settings_survive_the_way_to_dicts_and_back(name, variant):
    run_spec = load(name, variant)
    assert settings.freeze(settings.to_dict(run_spec)) == run_spec


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_the_decoder_has_the_counted_parameters_and_cache(name, variant):
    spec = load(name, variant).model
    model = model_lib.Decoder(spec)
    tokens = jax.ShapeDtypeStruct((1, spec.block_size), jnp.int32)
    variables = jax.eval_shape(
        lambda row: model.init(jax.random.key(0), row, document_ids=row, positions=row), tokens
    )
    made = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert made == accounting.count_parameters(spec).total
    cache = jax.eval_shape(
        lambda: model_lib.empty_cache(spec, batch_size=1, max_length=spec.context_length)
    ).layers
    cached = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    size = jnp.dtype(spec.compute_dtype).itemsize
    assert cached == accounting.cache_bytes(spec, bytes_per_element=size)


@pytest.mark.parametrize("name", [*SPARSE, "contrastive", "preferences", "steering", "zero/base"])
def test_presets_take_every_assignment_by_what_is_meant_for_the_device(name):
    model = load(name).model
    assert (model.dispatch, model.expert_kernel) == ("dropless", "auto")


@pytest.mark.parametrize("name", ["gpu_small", "r1_12b"])
def test_a_variant_has_a_capacity_and_is_else_the_same(name):
    tight, spec = load(name, "capacity"), load(name)
    assert (tight.model.dispatch, tight.model.capacity_factor) == ("capacity", 1.25)
    free = dataclasses.replace(tight.model, dispatch="dropless", capacity_factor=0.0)
    assert dataclasses.replace(tight, model=free) == spec


@pytest.mark.parametrize("name", SPARSE)
def test_dense_twins_differ_in_the_feed_forward_part_only(name):
    sparse = count(name)
    active, total = count(name, "dense_active"), count(name, "dense_total")
    assert active.active == sparse.active - sparse.router.active
    assert total.total == sparse.total - sparse.router.total
    feed_forward = {"num_experts", "num_groups", "top_groups", "top_k", "expert_hidden_dim"}
    feed_forward |= {"num_shared_experts", "dispatch", "capacity_factor", "expert_kernel"}
    feed_forward |= {"balance", "load_balance_weight", "router_z_weight", "bias_update_rate"}
    feed_forward |= {"router_scores", "router_weights", "router_scale"}
    for variant in ("dense_active", "dense_total"):
        run_spec, twin = load(name), load(name, variant)
        before, after = dataclasses.asdict(run_spec.model), dataclasses.asdict(twin.model)
        assert {key for key in before if before[key] != after[key]} <= feed_forward
        assert dataclasses.replace(twin, model=run_spec.model) == run_spec


def test_shared_experts_count_in_the_twins():
    config = settings.load_config(f"{FOLDER / 'laptop.py'}")
    config.model.num_shared_experts = 2
    width = config.model.expert_hidden_dim
    presets.with_variant(config, "dense_active", {})
    assert config.model.expert_hidden_dim == (4 + 2) * width


def test_r1_has_the_size_of_the_article_and_top2_its_share():
    r1, top2 = count("r1_12b"), count("r1_12b", "top2")
    assert r1.total == top2.total == 12_762_624_384  # 12.8 B
    assert (top2.active, round(100 * top2.active_share, 1)) == (260_452_736, 2.0)
    assert (r1.active, round(100 * r1.active_share, 1)) == (458_633_600, 3.6)
    assert r1.experts.active / r1.experts.total == 4 / 128
    spec, top2_spec = load("r1_12b"), load("r1_12b", "top2")
    assert dataclasses.replace(top2_spec.model, top_k=4) == spec.model
    model = spec.model
    assert (model.num_experts, model.num_groups, model.top_k) == (128, 8, 4)
    assert (model.block_size, model.context_length) == (1024, 100 * 1024)


def test_dense_12b_has_the_total_of_r1():
    dense = count("dense_12b")
    assert abs(dense.total / count("r1_12b").total - 1) < 0.001
    assert dense.active == dense.total - dense.embedding.total


def test_gpu_small_is_a_few_hundred_million():
    small = count("gpu_small")
    assert 300e6 < small.total < 450e6
    assert 30e6 < small.active < 60e6
    model = load("gpu_small").model
    assert (model.num_experts, model.num_groups, model.compute_dtype) == (128, 8, "bfloat16")


@pytest.mark.parametrize("name", SPARSE)
def test_presets_renormalise_and_name_their_groups(name):
    # Raw weights of many experts sum to little and mute the layer; docs/decisions.
    model = load(name).model
    assert model.router_weights == "renormalized"
    assert 1 < model.top_groups < model.num_groups


@pytest.mark.parametrize(("variant", "start"), [("", "gpu_small"), ("laptop", "laptop")])
def test_a_stage_on_preferences_has_the_model_that_it_starts_from(variant, start):
    assert load("preferences", variant).model == load(start).model.dropless()


@pytest.mark.parametrize("name", [*SPARSE, "dense_12b", "preferences", "steering"])
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(presets.UnknownVariantError, match=r"unknown variant 'other'; known: "):
        load(name, "other")


def test_a_near_variant_is_suggested():
    with pytest.raises(presets.UnknownVariantError, match=r"did you mean top2\?"):
        load("r1_12b", "top_2")
