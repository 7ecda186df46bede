"""Policies small enough for tests: a vocabulary of 16 tokens, and real stages on additions."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.policy_spec import (
    CriticSpec,
    GroupSpec,
    GrpoRunSpec,
    KlSpec,
    PpoRunSpec,
    RewardsSpec,
    UpdateSpec,
)
from deepseek_jax.core.preference_spec import (
    PreferenceFilesSpec,
    PreferencePairsSpec,
    PreferenceRunSpec,
)
from deepseek_jax.core.run_spec import OptimizerSpec
from deepseek_jax.core.stage_spec import (
    FilesSpec,
    PairsSpec,
    ProblemsRunSpec,
    ProblemsSpec,
    RewardRunSpec,
    RolloutSpec,
    StageTrainSpec,
)
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.objectives import masked
from deepseek_jax.ops import answers
from deepseek_jax.reinforcement import grpo, learner, ppo, problem_files
from deepseek_jax.reinforcement import state as state_lib
from deepseek_jax.reinforcement.rewards import RewardModel
from deepseek_jax.reinforcement.rollout import Prompts
from deepseek_jax.training import checkpoint, loop, metrics
from deepseek_jax.training import optimizer as optimizer_lib
from tests import tiny as tiny_models
from tests.training import tiny as tiny_runs

TOKENS = learner.Tokens(16, answers.AnswerIds(think=1, end_think=2, answer=3, end_answer=4, eos=5))
MODEL: dict[str, Any] = tiny_runs.MODEL | {
    "vocab_size": 16,
    "context_length": 32,
    "model_dim": 16,
    "num_kv_heads": 2,
    "head_dim": 8,
    "top_groups": 2,
    "expert_hidden_dim": 16,
}
DENSE: dict[str, Any] = tiny_runs.DENSE | {"top_groups": 1}  # which compiles fast
# Answers of up to 12 tokens in blocks of 8: every answer that is not cut early crosses blocks.
ROLLOUT: dict[str, Any] = {
    "num_prompts": 4,
    "samples_per_prompt": 2,
    "prompt_width": 7,
    "answer_width": 3,
    "max_new_tokens": 12,
    "temperature": 1.0,
}
FILES: dict[str, Any] = {"problems": "unset", "start_from": "unset", "reward_from": "unset"}
REWARDS: dict[str, Any] = {"learned": 1.0, "right": 0.5, "format": 0.25}
KL: dict[str, Any] = {"place": "reward", "coefficient": 0.1, "target": None, "horizon": None}
UPDATE: dict[str, Any] = {"clip": 0.2, "num_epochs": 2, "num_minibatches": 2}
CRITIC: dict[str, Any] = {
    "discount": 1.0,
    "gae_lambda": 0.95,
    "whiten": True,
    "value_clip": None,
    "learning_rate": 1e-2,
    "initial_value": 0.3,
}
OPTIMIZER: dict[str, Any] = tiny_runs.OPTIMIZER | {"warmup_steps": 0, "weight_decay": 0.0}
TRAIN: dict[str, Any] = {
    "num_steps": 5,
    "eval_every": 2,
    "checkpoint_every": 2,
    "keep_checkpoints": 9,
    "restore_step": None,
}
PROBLEMS: dict[str, Any] = {
    "task": "arithmetic",
    "min_size": 2,
    "max_size": 2,
    "num_text": 200,
    "num_reward": 16,
    "num_policy": 12,
    "num_validation": 8,
    "num_test": 4,
    "share_worked": 0.0,
    "share_careless": 0.0,
    "share_guess": 1.0,
    "share_slip": 0.0,
}
PAIRS: dict[str, Any] = {
    "num_sampled": 0,
    "num_built": 20,
    "pairs_per_problem": 2,
    "heldout_fraction": 0.25,
    "batch_size": 4,
    "centering_weight": 0.01,
}
# Dialogues in bytes, of up to 62 of them.
PREFERENCES: dict[str, Any] = {
    "sequence_length": 64,
    "heldout_fraction": 0.25,
    "batch_size": 4,
    "centering_weight": 0.01,
    "too_long": "error",
    "blank": "error",
    "equal": "error",
}
# What the stages need beside the settings above: bytes with tags, and prompts such as 12+34=.
WIDE: dict[str, Any] = {"vocab_size": 264, "context_length": 40}
QUIET = rich_console.Console(quiet=True)


def problems_spec(*, seed: int = 3, **changes: Any) -> ProblemsRunSpec:
    """The first stage with some settings replaced."""
    return ProblemsRunSpec(
        stage="problems", seed=seed, problems=ProblemsSpec(**(PROBLEMS | changes))
    )


def _common(changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The nodes that every stage has."""
    mesh: Any = vars(mesh_spec.ONE_DEVICE)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "model": (ModelSpec, MODEL),
        "mesh": (MeshSpec, mesh),
        "files": (FilesSpec, FILES),
        "rollout": (RolloutSpec, ROLLOUT),
        "optimizer": (OptimizerSpec, OPTIMIZER),
        "train": (StageTrainSpec, TRAIN),
    }
    return {
        name: kind(**(values | changes.pop(name, {}))) for name, (kind, values) in kinds.items()
    }


def reward_spec(**changes: dict[str, Any]) -> RewardRunSpec:
    """A reward stage with some settings of some nodes replaced."""
    changes["files"] = {"reward_from": None} | changes.pop("files", {})
    nodes = _common(changes)
    pairs = PairsSpec(**(PAIRS | changes.pop("pairs", {})))
    assert not changes
    return RewardRunSpec(stage="reward", seed=5, pairs=pairs, **nodes)


def preference_spec(**changes: dict[str, Any]) -> PreferenceRunSpec:
    """A stage on people's preferences with some settings of some nodes replaced."""
    sizes = {"vocab_size": 264, "context_length": 64}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "model": (ModelSpec, MODEL | sizes),
        "mesh": (MeshSpec, vars(mesh_spec.ONE_DEVICE)),
        "files": (PreferenceFilesSpec, {"pairs": "unset", "start_from": "unset"}),
        "pairs": (PreferencePairsSpec, PREFERENCES),
        "optimizer": (OptimizerSpec, OPTIMIZER),
        "train": (StageTrainSpec, TRAIN),
    }
    nodes: Any = {
        name: kind(**(values | changes.pop(name, {}))) for name, (kind, values) in kinds.items()
    }
    assert not changes
    return PreferenceRunSpec(stage="preferences", seed=5, **nodes)


def ppo_spec(**changes: dict[str, Any]) -> PpoRunSpec:
    """PPO with some settings of some nodes replaced."""
    nodes = _common(changes) | {
        "rewards": RewardsSpec(**(REWARDS | changes.pop("rewards", {}))),
        "kl": KlSpec(**(KL | changes.pop("kl", {}))),
        "update": UpdateSpec(**(UPDATE | changes.pop("update", {}))),
        "critic": CriticSpec(**(CRITIC | changes.pop("critic", {}))),
    }
    assert not changes
    return PpoRunSpec(stage="ppo", seed=5, **nodes)


def grpo_spec(**changes: dict[str, Any]) -> GrpoRunSpec:
    """GRPO with some settings of some nodes replaced."""
    nodes = _common(changes) | {
        "rewards": RewardsSpec(**(REWARDS | changes.pop("rewards", {}))),
        "kl": KlSpec(**(KL | {"place": "loss"} | changes.pop("kl", {}))),
        "update": UpdateSpec(**(UPDATE | changes.pop("update", {}))),
        "group": GroupSpec(**({"divide_by_std": True} | changes.pop("group", {}))),
    }
    assert not changes
    return GrpoRunSpec(stage="grpo", seed=5, **nodes)


class Built(NamedTuple):
    """What an iteration needs, made without files."""

    halves: learner.Halves
    state: state_lib.PolicyState
    reward_variables: Any


def build(spec: Any, *, layout: Any = None, optimizers: Any = None) -> Built:
    """Halves and a first state, whose reference is another model than the policy.

    Args:
      spec: of PPO or GRPO.
      layout: the mesh; None is one device.
      optimizers: of the policy and of the critic; None makes those of the settings.
    """
    length = spec.rollout.sequence_length(spec.model.block_size)
    is_ppo = isinstance(spec, PpoRunSpec)
    _, variables = tiny_models.make(spec.model)
    _, other = tiny_models.make(spec.model, seed=1)
    num_updates = spec.train.num_steps * spec.update.num_updates
    if optimizers is None:
        rates = [spec.optimizer.learning_rate]
        rates += [spec.critic.learning_rate] if is_ppo else rates
        optimizers = [
            optimizer_lib.make_optimizer(
                optimizer_lib.with_learning_rate(spec.optimizer, rate), num_steps=num_updates
            )
            for rate in rates
        ]
    reward_model = None
    if spec.files.reward_from is not None:
        reward_model = RewardModel(ScalarDecoder(spec.model, layout), None)
    if is_ppo:
        halves = ppo.make_halves(spec, *optimizers, reward_model, layout, TOKENS)
    else:
        halves = grpo.make_halves(spec, optimizers[0], reward_model, layout, TOKENS)

    def initial(variables: Any, other: Any, key: jax.Array) -> tuple[Any, Any]:
        start: Any = checkpoint.Model(variables["params"], variables.get("balance", {}), 0)
        critic = state_lib.scalar_state(
            spec.model,
            optimizers[1],
            start,
            key,
            sequence_length=length,
            bias=spec.critic.initial_value if is_ppo else 0.0,
        )
        state = state_lib.initial_policy(
            optimizers[0],
            start,
            key,
            kl_coefficient=spec.kl.coefficient,
            critic=critic if is_ppo else None,
        )
        near = jax.tree.map(lambda x, y: x + 0.1 * y, start.params, other["params"])
        state = state._replace(reference=state.reference | {"params": near})
        head = {"kernel": jax.random.normal(key, (spec.model.model_dim,)), "bias": jnp.float32(0.1)}
        scoring = {"params": critic.params | {"scalar_head": head}, "balance": critic.balance}
        return state, scoring

    return Built(halves, *jax.jit(initial)(variables, other, jax.random.key(spec.seed)))


def prompts(num_prompts: int = 4) -> Prompts:
    """Prompts of different lengths, on a border of a block's half and one below it."""
    random = np.random.default_rng(0)
    lengths = np.array([7, 1, 4, 6] * num_prompts, np.int32)[:num_prompts]
    tokens = random.integers(6, 16, (num_prompts, 8)).astype(np.int32)
    tokens = np.where(np.arange(8)[None] < lengths[:, None], tokens, 0)
    right = random.integers(6, 16, (num_prompts, 3)).astype(np.int32)
    sizes = np.full(num_prompts, 2, np.int32)
    arrays: Any = (tokens, lengths, right, sizes)
    return Prompts(*arrays)


def with_garbage(drawn: Any) -> Any:
    """The same answers with other numbers wherever nothing should look."""
    is_padding = drawn.document_ids == 0
    return drawn._replace(
        tokens=jnp.where(is_padding, 9, drawn.tokens),
        targets=jnp.where(drawn.mask, drawn.targets, 11),
        sampled_logprobs=jnp.where(drawn.mask, drawn.sampled_logprobs, -7.0),
        responses=jnp.where(drawn.response_mask, drawn.responses, 3),
    )


def copied(tree: Any) -> Any:
    """Arrays of their own, for functions that consume what they are given."""
    return jax.tree.map(jnp.copy, tree)


def mean_over(x: Any, mask: Any) -> float:
    """The mean of the entries that a mask keeps, on the host."""
    return float(masked.masked_mean(jnp.asarray(x), jnp.asarray(mask)))


def write_problems(directory: pathlib.Path, **changes: Any) -> pathlib.Path:
    """The files of the first stage."""
    problem_files.write(problems_spec(**changes), directory)
    return directory


def train_base(
    problems: pathlib.Path, directory: pathlib.Path, *, num_steps: int = 3
) -> pathlib.Path:
    """A run on the text of problems; after a few hundred steps it keeps to the format."""
    spec = tiny_runs.run_spec(
        problems,
        model=MODEL | WIDE,
        data={
            "source": "jsonl",
            "path": str(problems / "text.jsonl"),
            "field": "text",
            "tokenizer": "tagged_bytes",
            "sequence_length": 32,
        },
        optimizer={"learning_rate": 2e-2, "weight_decay": 0.0},
        train={
            "num_steps": num_steps,
            "batch_size": 16,
            "num_microbatches": 1,
            "log_every": num_steps,
            "eval_every": num_steps,
            "checkpoint_every": num_steps,
        },
    )
    loop.train(spec, directory, flops_per_token=None, console=QUIET)
    return directory


def lines(directory: pathlib.Path) -> list[dict[str, Any]]:
    """The metrics of a run but for its time."""
    listed = metrics.read_lines(directory / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in listed]


def last_loss(directory: pathlib.Path) -> float:
    """The last loss that a run on text logged."""
    text = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in text if "heldout" not in line][-1]
