"""The dense decoder of the size of `r1_12b`: the same total to 0.05%, every parameter active.

The shape is the usual one of this size (width 5120, 40 layers, 40 heads of 128). Attention
stays local-global, as in `r1_12b`, so that the two differ in sparsity and not in what they can
see; --config.model.attention=full --config.model.num_summaries=0 makes it the conventional
decoder. All else is taken from `r1_12b`.

Count:    python -m experiments.describe --config=experiments/configs/dense_12b.py
Run:      python -m experiments.main --config=experiments/configs/dense_12b.py \
            --workdir=runs/dense_12b
Measured: not yet.
"""

from ml_collections import config_dict

from experiments import presets
from experiments.configs import r1_12b


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; there are no variants."""
    presets.check_variant(variant, {"": None})
    config = r1_12b.get_config("dense_total")
    config.model.update(
        num_layers=40,
        model_dim=5120,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        expert_hidden_dim=16_384,
    )
    return config
