"""The run that `kill_test.py` kills: small enough to be quick, large enough to be caught saving.

Run: python -m experiments.main --config=tests/training/kill_config.py --workdir=DIR \
       --config.data.path=FOLDER
"""

from ml_collections import config_dict

from experiments import presets
from tests.training import tiny

# Mostly embeddings: they cost bytes to save and hardly any time to train.
MODEL = tiny.MODEL | {"vocab_size": 30_000, "model_dim": 32}
# So many steps that a run is far from its end at every kill, on a machine ten times faster too.
TRAIN = tiny.TRAIN | {
    "num_steps": 200,
    "log_every": 4,
    "eval_every": 20,
    "checkpoint_every": 5,
    "keep_checkpoints": 2,
}


def _node(values):
    """A node whose settings that are None may be given on the command line."""
    open_values = {
        name: presets.optional() if value is None else value for name, value in values.items()
    }
    return config_dict.ConfigDict(open_values)


def get_config(variant=""):
    """Returns the settings; there are no variants."""
    assert not variant
    config = config_dict.ConfigDict()
    config.seed = 3
    config.model = _node(MODEL)
    config.mesh = _node(tiny.MESH)
    config.data = _node(tiny.DATA | {"path": None})
    config.optimizer = _node(tiny.OPTIMIZER)
    config.train = _node(TRAIN)
    config.eval = _node(tiny.EVAL)
    return config
