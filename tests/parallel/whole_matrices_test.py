"""A function of whole matrices is the same however they are cut, and its work is shared out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.parallel import program, rules, whole_matrices
from tests import tolerances
from tests.parallel import layers

DENSE = ("layers", "embed", "heads")
EXPERTS = ("layers", "experts", "expert_embed", "expert_hidden")
# mesh, shape, names, stacked dimensions, what is sent: (kind, shape that a device then holds).
# The parts of an all-to-all stand in their own dimension or in a list, so only bytes are compared.
CASES = {
    # [4, 8, 6]: 4 layers for 4 devices of data and expert, there and back
    "a matrix a device": (
        (2, 2, 1),
        (4, 8, 6),
        DENSE,
        1,
        [("all-to-all", (1, 8, 6)), ("all-to-all", (4, 2, 6))],
    ),
    # 3 layers cannot be shared out among 4: all devices gather all
    "too few matrices": ((2, 2, 1), (3, 8, 6), DENSE, 1, [("all-gather", (3, 8, 6))]),
    # one layer of 4 left for the 2 devices of model, which gather it before the others share
    "cut both ways": (
        (2, 2, 2),
        (4, 8, 6),
        DENSE,
        1,
        [("all-to-all", (1, 8, 3)), ("all-gather", (1, 8, 6)), ("all-to-all", (4, 2, 3))],
    ),
    # 4 experts a device, cut over 2 of data and 2 of model: 2, then 1, of each of 2 layers
    "experts": (
        (2, 2, 2),
        (2, 8, 4, 6),
        EXPERTS,
        2,
        [
            ("all-to-all", (2, 2, 4, 3)),
            ("all-to-all", (2, 1, 4, 6)),
            ("all-to-all", (2, 2, 4, 3)),
            ("all-to-all", (2, 4, 2, 3)),
        ],
    ),
    "on one device": ((1, 1, 1), (4, 8, 6), DENSE, 1, []),
    "experts where they live": ((1, 8, 1), (2, 8, 4, 6), EXPERTS, 2, []),
}


def cubed(matrices):
    """Of each matrix m: m m^T m, to which every row and column gives something."""
    return jnp.einsum("...df,...ef,...eg->...dg", matrices, matrices, matrices)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_function_and_sends_what_it_must(name):
    sizes, shape, names, num_stacked, sent = CASES[name]
    sharding = rules.sharding(layers.layout(sizes).mesh, *names)
    matrices = jax.random.normal(jax.random.key(0), shape)
    run = jax.jit(
        lambda x: whole_matrices.apply(cubed, x, sharding, num_stacked=num_stacked),
        in_shardings=sharding,
        out_shardings=sharding,
    )
    compiled = run.lower(matrices).compile()
    result = compiled(jax.device_put(matrices, sharding))
    np.testing.assert_allclose(result, cubed(matrices), **tolerances.LAYER_F32)
    found = [(one.kind, one.num_bytes) for one in program.collectives(compiled.as_text())]
    assert sorted(found) == sorted((kind, 4 * int(np.prod(held))) for kind, held in sent)
