"""Runs that differ in seed and files share programs; others do not."""

import dataclasses

import jax
import pytest

from deepseek_jax.core import mesh_spec
from deepseek_jax.parallel import layout
from deepseek_jax.reinforcement import policy_programs
from tests.reinforcement import tiny

pytestmark = pytest.mark.deep


@pytest.mark.parametrize("make_spec", [tiny.ppo_spec, tiny.grpo_spec])
def test_seed_and_files_are_no_part_of_a_program(make_spec):
    one_device = layout.make(mesh_spec.ONE_DEVICE, jax.devices())
    spec = make_spec()

    def made(**changes):
        return policy_programs.make(dataclasses.replace(spec, **changes), one_device, tiny.TOKENS)

    elsewhere = dataclasses.replace(spec.files, problems="elsewhere", start_from="other")
    first = made()
    assert made(seed=spec.seed + 1, files=elsewhere) is first
    assert made(kl=dataclasses.replace(spec.kl, coefficient=0.5)) is not first
    assert first.abstract == made(kl=dataclasses.replace(spec.kl, coefficient=0.5)).abstract
