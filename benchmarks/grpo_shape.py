"""The shape that `grpo_step` measures GRPO at: settings without any earlier run, and problems."""

from typing import Literal

import numpy as np

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.policy_spec import GroupSpec, GrpoRunSpec, KlSpec, RewardsSpec, UpdateSpec
from deepseek_jax.core.run_spec import OptimizerSpec
from deepseek_jax.core.stage_spec import FilesSpec, RolloutSpec, StageTrainSpec
from deepseek_jax.data.problems import arithmetic, splits
from deepseek_jax.data.problems.problem import Problem

NUM_PROBLEMS = 512


def make_spec(
    *, is_dense: bool, attention: Literal["local_global", "full"], num_steps: int
) -> GrpoRunSpec:
    """16 prompts x 8 answers, 3 layers of width 128; the paths of its files lead nowhere."""
    model = ModelSpec(
        vocab_size=264,
        context_length=64,
        num_layers=3,
        model_dim=128,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        rope_base=1000.0,
        attention=attention,
        block_size=16,
        attention_kernel="tiles",
        num_summaries=8 if attention == "local_global" else 0,
        num_experts=1 if is_dense else 4,
        num_groups=1,
        top_groups=1,
        top_k=1 if is_dense else 2,
        num_shared_experts=0,
        expert_hidden_dim=256 if is_dense else 128,
        router_scores="softmax",
        router_weights="raw" if is_dense else "renormalized",
        router_scale=1.0,
        balance="none" if is_dense else "loss",
        load_balance_weight=0.0 if is_dense else 0.01,
        router_z_weight=0.0,
        bias_update_rate=0.0,
        dispatch="dropless",
        capacity_factor=0.0,
        expert_kernel="loop",
        tie_embeddings=False,
        norm_eps=1e-6,
        remat="none",
        scan_unroll=1,
        compute_dtype="float32",
    )
    return GrpoRunSpec(
        stage="grpo",
        seed=0,
        model=model,
        mesh=MeshSpec(data=1, expert=1, model=1, exchange="exact", rows_factor=0.0),
        files=FilesSpec(problems="none", start_from="none", reward_from=None),
        rollout=RolloutSpec(
            num_prompts=16,
            samples_per_prompt=8,
            prompt_width=9,
            answer_width=4,
            max_new_tokens=37,
            temperature=1.0,
        ),
        rewards=RewardsSpec(learned=0.0, right=1.0, format=0.0),
        kl=KlSpec(place="loss", coefficient=0.02, target=None, horizon=None),
        update=UpdateSpec(clip=0.2, num_epochs=1, num_minibatches=1),
        group=GroupSpec(divide_by_std=True),
        optimizer=OptimizerSpec(
            name="adamw",
            learning_rate=3e-4,
            muon_learning_rate=0.0,
            warmup_steps=0,
            final_fraction=0.1,
            weight_decay=0.0,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_norm=1.0,
        ),
        train=StageTrainSpec(
            num_steps=num_steps,
            eval_every=num_steps,
            checkpoint_every=num_steps,
            keep_checkpoints=1,
            restore_step=None,
        ),
    )


def problems() -> list[Problem]:
    """Additions of three digits."""
    return splits.draw_split(
        arithmetic.draw,
        np.random.default_rng(0),
        sizes=(3,),
        split="policy",
        num_problems=NUM_PROBLEMS,
    )
