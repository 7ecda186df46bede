"""A run of contrastive pretraining of a size of seconds, on documents of a few topics."""

import dataclasses

import numpy as np

from deepseek_jax.core.contrastive_spec import ContrastiveRunSpec, ContrastiveSpec
from deepseek_jax.core.mesh_spec import ONE_DEVICE
from deepseek_jax.core.run_spec import DataSpec, OptimizerSpec
from deepseek_jax.core.stage_spec import StageTrainSpec
from tests import tiny

LENGTH = 16
NUM_DOCUMENTS = 60


def write_documents(folder):
    """Each document writes with four letters of its own, in random order."""
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for number in range(NUM_DOCUMENTS):
        letters = random.choice(list("abcdefghijklmnopqrstuvwxyz"), size=4, replace=False)
        (folder / f"{number}.txt").write_text("".join(random.choice(letters, size=80)))


def spec(folder, *, contrastive=None, **train):
    """Settings of a run on the documents in a folder."""
    return ContrastiveRunSpec(
        stage="contrastive",
        seed=0,
        model=dataclasses.replace(tiny.SPARSE, vocab_size=260, tie_embeddings=False),
        mesh=dataclasses.replace(ONE_DEVICE, exchange="exact"),
        data=DataSpec(
            source="folder",
            path=str(folder),
            field=None,
            prompt_field=None,
            max_bytes=None,
            tokenizer="bytes",
            tokenizer_path=None,
            bpe_vocab_size=None,
            heldout_fraction=0.3,
            sequence_length=LENGTH,
        ),
        contrastive=ContrastiveSpec(
            **{
                "weight": 1.0,
                "projection_dim": 8,
                "temperature": 0.1,
                "learn_temperature": True,
                "batch_size": 16,
                "eval_documents": 18,
                **(contrastive or {}),
            }
        ),
        optimizer=OptimizerSpec(
            name="adamw",
            learning_rate=0.01,
            muon_learning_rate=0.0,
            warmup_steps=1,
            final_fraction=0.1,
            weight_decay=0.0,
            beta1=0.9,
            beta2=0.98,
            eps=1e-8,
            clip_norm=1.0,
        ),
        train=StageTrainSpec(
            **{
                "num_steps": 4,
                "eval_every": 2,
                "checkpoint_every": 2,
                "keep_checkpoints": 2,
                "restore_step": None,
                **train,
            }
        ),
    )


OFF = {"weight": 0.0, "projection_dim": 0, "temperature": 0.0, "learn_temperature": False}
