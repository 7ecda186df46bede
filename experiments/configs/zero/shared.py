"""What the stages of the recipe share: one small sparse model, and where stages lie."""

from ml_collections import config_dict

from experiments import presets

# Directories that the recipe puts its stages in, below that of a seed.
ROOT = "runs/zero/seed_0"


def model() -> config_dict.ConfigDict:
    """Eight experts in four groups; blocks of 16 tokens, shorter than a worked answer."""
    return config_dict.ConfigDict(
        dict(
            vocab_size=264,
            context_length=96,
            num_layers=3,
            model_dim=128,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            rope_base=1000.0,
            attention="local_global",
            block_size=16,
            attention_kernel="tiles",
            num_summaries=8,
            num_experts=8,
            num_groups=4,
            top_groups=2,
            top_k=2,
            num_shared_experts=0,
            expert_hidden_dim=96,
            router_scores="softmax",
            router_weights="renormalized",
            router_scale=1.0,
            balance="loss",
            load_balance_weight=0.01,
            router_z_weight=0.0,
            bias_update_rate=0.0,
            dispatch="dropless",
            capacity_factor=0.0,
            expert_kernel="auto",
            tie_embeddings=False,
            norm_eps=1e-6,
            remat="none",
            scan_unroll=1,
            compute_dtype="float32",
        )
    )


def mesh() -> config_dict.ConfigDict:
    """One device."""
    return config_dict.ConfigDict(
        dict(data=1, expert=1, model=1, exchange="exact", rows_factor=0.0)
    )


def rollout(*, num_prompts: int, samples_per_prompt: int) -> config_dict.ConfigDict:
    """Answers to additions of three digits: at most 9 tokens of prompt and 36 of answer."""
    return config_dict.ConfigDict(
        dict(
            num_prompts=num_prompts,
            samples_per_prompt=samples_per_prompt,
            prompt_width=9,
            answer_width=4,
            max_new_tokens=36,
            temperature=1.0,
        )
    )


def files(*, reward: bool) -> config_dict.ConfigDict:
    """Where the recipe puts what a stage starts from."""
    return config_dict.ConfigDict(
        dict(
            problems=f"{ROOT}/problems",
            start_from=f"{ROOT}/base",
            reward_from=presets.optional(f"{ROOT}/reward" if reward else None),
        )
    )


def policy_optimizer(*, learning_rate: float) -> config_dict.ConfigDict:
    """Adam, its rate falling to a tenth."""
    return config_dict.ConfigDict(
        dict(
            name="adamw",
            learning_rate=learning_rate,
            muon_learning_rate=0.0,
            warmup_steps=0,
            final_fraction=0.1,
            weight_decay=0.0,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_norm=1.0,
        )
    )


def stage_train(*, num_steps: int, eval_every: int) -> config_dict.ConfigDict:
    """A loop that saves whenever it measures."""
    return config_dict.ConfigDict(
        dict(
            num_steps=num_steps,
            eval_every=eval_every,
            checkpoint_every=eval_every,
            keep_checkpoints=1,
            restore_step=presets.optional(),
        )
    )
