"""The config of described tasks in a size of seconds."""

from experiments import settings


def spec(**changes):
    """The config's structure with small sizes."""
    config = settings.load_config("experiments/configs/steering.py")
    small = {"num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    config.model.update(small | {"expert_hidden_dim": 8, "num_groups": 2, "num_experts": 4})
    config.tasks.update(
        {"num_digits": 2, "num_train": 80, "num_heldout": 20, "inputs_per_description": 2}
    )
    config.vector.update({"dim": 8, "encoder_dim": 8, "num_queries": 2})
    config.train.update({"num_steps": 4, "eval_every": 2, "checkpoint_every": 2})
    config.train.keep_checkpoints = 3
    config.optimizer.warmup_steps = 1
    config.update_from_flattened_dict(changes)
    return settings.freeze(config)
