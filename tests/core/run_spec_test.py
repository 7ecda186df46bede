"""Every rule of the specs of a run: a bad setting is refused by name and value."""

import dataclasses

import pytest

from deepseek_jax.core import mesh_spec, run_spec
from tests import tiny
from tests.core import rules

RUN = run_spec.RunSpec(
    seed=0,
    model=tiny.SPARSE,
    mesh=mesh_spec.ONE_DEVICE,
    data=run_spec.DataSpec(
        source="stdlib",
        path=None,
        field=None,
        prompt_field=None,
        max_bytes=1000,
        tokenizer="bytes",
        tokenizer_path=None,
        bpe_vocab_size=None,
        heldout_fraction=0.1,
        sequence_length=8,
    ),
    optimizer=run_spec.OptimizerSpec(
        name="adamw",
        learning_rate=0.1,
        muon_learning_rate=0.0,
        warmup_steps=1,
        final_fraction=0.1,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        clip_norm=1.0,
    ),
    train=run_spec.TrainSpec(
        num_steps=4,
        batch_size=4,
        num_microbatches=2,
        log_every=1,
        eval_every=2,
        eval_rows=2,
        checkpoint_every=2,
        keep_checkpoints=1,
        restore_step=None,
        start_from=None,
        profile_at=None,
        profile_steps=1,
    ),
    eval=run_spec.EvalSpec(
        num_rows=None, batch_size=2, prompt="", sample_tokens=1, temperature=0.0
    ),
)
POSITIVE = (
    "num_steps",
    "batch_size",
    "num_microbatches",
    "log_every",
    "eval_every",
    "eval_rows",
    "checkpoint_every",
    "keep_checkpoints",
    "restore_step",
    "profile_steps",
)
BROKEN = [  # node, changes, what the message starts with
    ("data", {"source": "folder"}, "data.path=None: must be given with data.source='folder'"),
    ("data", {"path": "x"}, "data.path='x': must be None with data.source='stdlib'"),
    (
        "data",
        {"source": "jsonl", "path": "x"},
        "data.field=None: must be given with data.source='jsonl'",
    ),
    (
        "data",
        {"source": "folder", "path": "x", "field": "text"},
        "data.field='text': must be None with data.source='folder'",
    ),
    (
        "data",
        {"prompt_field": "question"},
        "data.prompt_field='question': must be None, or with data.source=\"jsonl\" another field",
    ),
    (
        "data",
        {"source": "jsonl", "path": "x", "field": "text", "prompt_field": "text"},
        "data.prompt_field='text': must be None, or with data.source=\"jsonl\" another field than "
        "data.field='text'",
    ),
    (
        "data",
        {"tokenizer": "file"},
        "data.tokenizer_path=None: must be given with data.tokenizer='file'",
    ),
    (
        "data",
        {"tokenizer_path": "x"},
        "data.tokenizer_path='x': must be None with data.tokenizer='bytes'",
    ),
    (
        "data",
        {"tokenizer": "bpe"},
        "data.bpe_vocab_size=None: must be given with data.tokenizer='bpe'",
    ),
    (
        "data",
        {"bpe_vocab_size": 400},
        "data.bpe_vocab_size=400: must be None with data.tokenizer='bytes'",
    ),
    (
        "data",
        {"tokenizer": "bpe", "bpe_vocab_size": 299},
        "data.bpe_vocab_size=299: must be at least 300",
    ),
    ("data", {"max_bytes": 0}, "data.max_bytes=0: must be at least 1"),
    ("data", {"heldout_fraction": 0.0}, "data.heldout_fraction=0.0: must be in (0, 1)"),
    ("data", {"heldout_fraction": 1.0}, "data.heldout_fraction=1.0: must be in (0, 1)"),
    ("data", {"sequence_length": 1}, "data.sequence_length=1: must be at least 2"),
    *(
        ("optimizer", {name: 0.0}, f"optimizer.{name}=0.0: must be above 0")
        for name in ("learning_rate", "eps", "clip_norm")
    ),
    (
        "optimizer",
        {"name": "muon"},
        "optimizer.muon_learning_rate=0.0: must be above 0 with optimizer.name='muon'",
    ),
    (
        "optimizer",
        {"muon_learning_rate": 0.1},
        "optimizer.muon_learning_rate=0.1: must be 0.0 with optimizer.name='adamw'",
    ),
    ("optimizer", {"warmup_steps": -1}, "optimizer.warmup_steps=-1: must be at least 0"),
    ("optimizer", {"weight_decay": -0.1}, "optimizer.weight_decay=-0.1: must be at least 0"),
    ("optimizer", {"beta1": 1.0}, "optimizer.beta1=1.0: must be in [0, 1)"),
    ("optimizer", {"beta2": -0.5}, "optimizer.beta2=-0.5: must be in [0, 1)"),
    ("optimizer", {"final_fraction": 1.5}, "optimizer.final_fraction=1.5: must be in [0, 1]"),
    *(("train", {name: 0}, f"train.{name}=0: must be at least 1") for name in POSITIVE),
    ("train", {"profile_at": -1}, "train.profile_at=-1: must be at least 0"),
    (
        "train",
        {"num_microbatches": 3},
        "train.num_microbatches=3: must be a divisor of train.batch_size=4",
    ),
    (
        "train",
        {"profile_at": 4},
        "train.profile_at=4: must be at most train.num_steps - train.profile_steps = 3",
    ),
    ("eval", {"num_rows": 0}, "eval.num_rows=0: must be at least 1"),
    ("eval", {"batch_size": 0}, "eval.batch_size=0: must be at least 1"),
    ("eval", {"sample_tokens": 0}, "eval.sample_tokens=0: must be at least 1"),
    ("eval", {"temperature": -0.1}, "eval.temperature=-0.1: must be at least 0"),
    (None, {"seed": -1}, "seed=-1: must be at least 0"),
    (
        None,
        {"data": dataclasses.replace(RUN.data, sequence_length=6)},
        "data.sequence_length=6: must be a multiple of model.block_size=4",
    ),
    (
        None,
        {"data": dataclasses.replace(RUN.data, sequence_length=68)},
        "data.sequence_length=68: must be at most model.context_length=64",
    ),
    (
        None,
        {"data": dataclasses.replace(RUN.data, tokenizer="bpe", bpe_vocab_size=300)},
        "data.bpe_vocab_size=300: must be at most model.vocab_size=50",
    ),
    (
        None,
        {"model": dataclasses.replace(RUN.model, dispatch="capacity", capacity_factor=1.0)},
        "mesh.exchange='exact': must be \"bounded\" with model.dispatch='capacity'",
    ),
    (
        None,
        {"optimizer": dataclasses.replace(RUN.optimizer, warmup_steps=4)},
        "optimizer.warmup_steps=4: must be below train.num_steps=4",
    ),
]


def broken_line(node, changes, message):
    base = getattr(RUN, node) if node else RUN
    return rules.line_of_broken_rule(
        run_spec, lambda: dataclasses.replace(base, **changes), message
    )


@pytest.mark.parametrize(("node", "changes", "message"), BROKEN, ids=[case[2] for case in BROKEN])
def test_a_broken_rule_names_key_value_and_what_is_allowed(node, changes, message):
    broken_line(node, changes, message)


def test_every_rule_has_an_example():
    assert {broken_line(*case) for case in BROKEN} == rules.lines_of_rules(run_spec)


def test_optional_settings_may_be_none_or_given():
    train = dataclasses.replace(RUN.train, restore_step=2, start_from="runs/a", profile_at=0)
    assert (train.restore_step, train.start_from, train.profile_at) == (2, "runs/a", 0)
    assert dataclasses.replace(RUN.data, max_bytes=None).max_bytes is None
    jsonl = {"source": "jsonl", "path": "x", "field": "text", "prompt_field": "question"}
    assert dataclasses.replace(RUN.data, **jsonl).prompt_field == "question"
    assert dataclasses.replace(RUN.eval, num_rows=3).num_rows == 3
