"""The table from names to mesh axes, and that it serves every parameter."""

import re

import flax.linen as nn
import jax
import pytest
from jax.sharding import PartitionSpec

from deepseek_jax.nn import model as model_lib
from deepseek_jax.parallel import rules
from tests import tiny
from tests.parallel import layers

ROWS = ("data", "expert")
TABLE = {
    (): PartitionSpec(),
    ("batch", None, "vocab"): PartitionSpec(ROWS, None, "model"),
    ("layers", "embed", "heads", "head_dim"): PartitionSpec(None, ROWS, "model", None),
    ("kv_heads", "norm"): PartitionSpec("model", None),
    ("experts", "expert_embed", "expert_hidden"): PartitionSpec("expert", "data", "model"),
    ("experts", "expert_hidden", "expert_embed"): PartitionSpec("expert", "model", "data"),
}


@pytest.mark.parametrize("names", TABLE, ids=str)
def test_table_by_hand(names):
    assert rules.partition_spec(names) == TABLE[names]


def test_every_mesh_axis_cuts_its_share():
    # 2 x 2 x 2: rows in 4 parts, vocabulary in 2
    sharding = rules.sharding(layers.layout((2, 2, 2)).mesh, "batch", None, "vocab")
    assert sharding.shard_shape((8, 3, 10)) == (2, 3, 5)


def test_an_unknown_name_is_refused():
    with pytest.raises(
        ValueError, match=re.escape("logical axis 'hed' of ('embed', 'hed') is not")
    ):
        rules.partition_spec(("embed", "hed"))


@pytest.mark.parametrize(
    ("names", "axis"),
    [
        (("embed", "batch"), "data"),
        (("experts", "embed"), "expert"),
        (("expert_embed", "embed"), "data"),
        (("vocab", "heads"), "model"),
        (("embed", "embed"), "data"),
    ],
)
def test_an_axis_cuts_one_dimension_only(names, axis):
    message = (
        f"mesh axis {axis!r} would cut two dimensions of {names}: {names[0]!r} and {names[1]!r}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        rules.partition_spec(names)


def names_of(spec):
    """The logical names of every parameter's dimensions, by its path."""
    tokens, context = tiny.rows(length=spec.block_size)
    boxed = jax.eval_shape(
        lambda key: model_lib.Decoder(spec).init(key, tokens, **context)["params"],
        jax.random.key(0),
    )
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )
    assert all(isinstance(leaf, nn.Partitioned) for _, leaf in leaves)  # none is without names
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.mark.deep
def test_every_parameter_is_cut_without_collision_and_every_name_has_a_use():
    used = {"batch"}  # of activations
    for name, spec in tiny.VARIANTS.items():
        for path, leaf in names_of(spec).items():
            assert len(leaf.names) == leaf.value.ndim, (name, path)
            assert len(rules.partition_spec(leaf.names)) == leaf.value.ndim, (name, path)
            used |= set(leaf.names) - {None}
    assert used == set(rules.RULES)


def test_a_parameter_of_every_part_by_hand():
    found = {path: rules.partition_spec(leaf.names) for path, leaf in names_of(tiny.BIASED).items()}
    feed_forward = "['layers']['feed_forward']"
    assert found[f"{feed_forward}['gate']"] == PartitionSpec(None, "expert", "data", "model")
    assert found[f"{feed_forward}['down']"] == PartitionSpec(None, "expert", "model", "data")
    assert found[f"{feed_forward}['shared_down']"] == PartitionSpec(None, "model", ROWS)
    assert found[f"{feed_forward}['router']['kernel']"] == PartitionSpec(None, ROWS, None)
    assert found["['embed']['embedding']"] == PartitionSpec("model", ROWS)
    assert found["['head']['kernel']"] == PartitionSpec(ROWS, "model")
