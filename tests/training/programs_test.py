"""Programs are made once for equal settings, and no run sees another's numbers in them."""

import dataclasses

import jax
import numpy as np
import pytest

from deepseek_jax.core import mesh_spec
from deepseek_jax.parallel import layout
from deepseek_jax.training import programs
from tests.training import tiny


def _made(spec, **changes):
    given = {
        "num_steps": spec.train.num_steps,
        "num_microbatches": spec.train.num_microbatches,
        "sequence_length": spec.data.sequence_length,
        # Made anew: equal, not the same.
        "layout": layout.make(mesh_spec.ONE_DEVICE, jax.devices()),
    }
    return programs.make(spec.model, spec.optimizer, **(given | changes))


@pytest.mark.deep
def test_equal_settings_share_programs_and_others_do_not(tmp_path):
    spec = tiny.run_spec(tmp_path)
    made = _made(spec)
    assert _made(dataclasses.replace(spec, seed=spec.seed + 1)) is made
    others = [
        _made(spec, num_steps=spec.train.num_steps + 1),
        _made(spec, num_microbatches=1 + spec.train.num_microbatches),
        _made(spec, layout=layout.make(mesh_spec.ONE_DEVICE, jax.devices()[1:])),
        _made(dataclasses.replace(spec, model=dataclasses.replace(spec.model, norm_eps=1e-4))),
    ]
    assert len({id(each.train_step) for each in (made, *others)}) == 5


@pytest.mark.deep
def test_a_seed_is_no_part_of_a_program(tmp_path):
    initial = _made(tiny.run_spec(tmp_path)).initial
    drawn = [
        np.asarray(initial(jax.random.key(seed)).params["embed"]["embedding"]) for seed in (0, 1, 0)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01
