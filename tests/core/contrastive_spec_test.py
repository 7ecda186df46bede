"""What the settings of contrastive pretraining refuse."""

import pytest

from deepseek_jax.core.contrastive_spec import ContrastiveSpec

ON = {
    "weight": 0.5,
    "projection_dim": 8,
    "temperature": 0.1,
    "learn_temperature": True,
    "batch_size": 4,
    "eval_documents": 4,
}
OFF = ON | {"weight": 0.0, "projection_dim": 0, "temperature": 0.0, "learn_temperature": False}


def test_on_and_off():
    assert ContrastiveSpec(**ON).is_on and not ContrastiveSpec(**OFF).is_on


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ON | {"weight": -1.0}, "contrastive.weight=-1.0: must be at least 0"),
        (ON | {"projection_dim": 0}, "contrastive.projection_dim=0: must be above 0"),
        (ON | {"temperature": 0.0}, "contrastive.temperature=0.0: must be above 0"),
        (OFF | {"temperature": 0.1}, "contrastive.temperature=0.1: must be 0 with"),
        (OFF | {"projection_dim": 8}, "contrastive.projection_dim=8: must be 0 with"),
        (OFF | {"learn_temperature": True}, "contrastive.learn_temperature=True: must be False"),
        (ON | {"batch_size": 1}, "contrastive.batch_size=1: must be at least 2"),
        (ON | {"eval_documents": 1}, "contrastive.eval_documents=1: must be at least 2"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveSpec(**given)
