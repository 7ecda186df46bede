"""What a run of PPO or GRPO compiles, made once for all runs of equal settings. Floor 6.

As `training/programs.py`: seeds, files and where a run was left are no part of a program.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Key

from deepseek_jax.core.policy_spec import PolicyRunSpec, PpoRunSpec
from deepseek_jax.core.stage_spec import FilesSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.reinforcement import drawing, grpo, learner, mismatch, ppo
from deepseek_jax.reinforcement import state as state_lib
from deepseek_jax.reinforcement.rewards import RewardModel
from deepseek_jax.reinforcement.state import PolicyState
from deepseek_jax.training import checkpoint
from deepseek_jax.training import optimizer as optimizer_lib
from deepseek_jax.training import state as train_state

# Of the settings used last; arms of one recipe seldom have more.
_KEPT = 4


class Programs(NamedTuple):
    """Jitted functions, each compiled when it is first called, and the state that they share.

    Attributes:
      abstract: shapes, dtypes and placement of the state.
      initial: (start, key) -> the state before the first iteration.
      iteration: (state, prompts, reward model's variables) -> (state, metrics); consumes its state.
      collect: the first half of an iteration, for verdicts from the host.
      update: the second half; consumes its state.
      draw: of `drawing.make_draw`, at the rollout's temperature.
      expert_mismatch: (variables, prompts, answers) -> share of expert choices that differ between
        rollout and training.
    """

    abstract: PolicyState
    initial: Callable[[checkpoint.Model, Key[Array, ""]], PolicyState]
    iteration: Callable[..., tuple[PolicyState, learner.Metrics]]
    collect: learner.Collect
    update: learner.Update
    draw: Any
    expert_mismatch: Callable[..., Float[Array, ""]]


def make(spec: PolicyRunSpec, layout: Layout, tokens: learner.Tokens) -> Programs:
    """The programs of a run; the same ones for settings that differ in seed and files alone.

    Args:
      spec: of the run.
      layout: the mesh that all of it lies on, of one device or many.
      tokens: of the tokenizer.
    """
    learned = None if spec.files.reward_from is None else ""
    files = FilesSpec(problems="", start_from="", reward_from=learned)
    return _make(dataclasses.replace(spec, seed=0, files=files), layout, tokens)


@functools.lru_cache(maxsize=_KEPT)
def _make(spec: PolicyRunSpec, layout: Layout, tokens: learner.Tokens) -> Programs:
    """Of settings without a seed or files."""
    on_mesh = layout if layout.mesh.size > 1 else None
    length = spec.rollout.sequence_length(spec.model.block_size)
    num_updates = spec.train.num_steps * spec.update.num_updates
    model = Decoder(spec.model, on_mesh)

    def optimizer_of(settings: Any, learner_model: Any) -> Any:
        placement = train_state.parameter_placement(
            learner_model, sequence_length=length, mesh=layout.mesh
        )
        return optimizer_lib.make_optimizer(settings, num_steps=num_updates, placement=placement)

    optimizer = optimizer_of(spec.optimizer, Decoder(spec.model))
    reward_model = None
    if spec.files.reward_from is not None:
        reward_model = RewardModel(ScalarDecoder(spec.model, on_mesh), None)
    critic_optimizer = None
    if isinstance(spec, PpoRunSpec):
        settings = optimizer_lib.with_learning_rate(spec.optimizer, spec.critic.learning_rate)
        critic_optimizer = optimizer_of(settings, ScalarDecoder(spec.model))
        halves = ppo.make_halves(spec, optimizer, critic_optimizer, reward_model, on_mesh, tokens)
    else:
        halves = grpo.make_halves(spec, optimizer, reward_model, on_mesh, tokens)
    abstract = state_lib.abstract_policy(
        spec.model, optimizer, critic_optimizer, sequence_length=length, mesh=layout.mesh
    )
    placed = train_state.shardings(abstract)
    kept = None if on_mesh is None else placed

    def initial(start: checkpoint.Model, key: Key[Array, ""]) -> PolicyState:
        critic = None
        if isinstance(spec, PpoRunSpec):
            critic = state_lib.scalar_state(
                spec.model,
                critic_optimizer,
                start,
                key,
                sequence_length=length,
                bias=spec.critic.initial_value,
            )
        return state_lib.initial_policy(
            optimizer, start, key, kl_coefficient=spec.kl.coefficient, critic=critic
        )

    return Programs(
        abstract,
        jax.jit(initial, out_shardings=placed),
        learner.make_iteration(halves, shardings=kept),
        jax.jit(halves.collect),
        learner.make_update(halves, shardings=kept),
        drawing.make_draw(model, spec.rollout, tokens, temperature=spec.rollout.temperature),
        jax.jit(learner.with_exact_matmuls(functools.partial(mismatch.expert_mismatch, model))),
    )
