"""Runs of contrastive pretraining: they learn, resume, and lie on a mesh as on one device."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from rich import console as rich_console

from deepseek_jax.contrastive import heldout, stage, step
from deepseek_jax.core import mesh_spec
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.data import spans
from deepseek_jax.nn.model import Decoder
from deepseek_jax.nn.span import SpanDecoder
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel import placement
from deepseek_jax.training import interrupt, optimizer, state
from experiments import semantics
from tests import tolerances
from tests.contrastive import tiny

pytestmark = pytest.mark.deep
QUIET = rich_console.Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents")
    tiny.write_documents(path)
    return path


def _lines(directory):
    text = (directory / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def learned(folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("learned")
    spec = tiny.spec(folder, num_steps=120, eval_every=60, checkpoint_every=60)
    stage.train(spec, directory, console=QUIET)
    return directory


def test_it_learns_which_spans_belong_together(learned):
    first, last = _lines(learned)[0], _lines(learned)[-1]
    assert first["contrastive_loss"] > 2.0 > 1.5 > last["contrastive_loss"]
    assert last["heldout_recall_at_1"] > 0.3  # chance: 1 of 35
    assert last["loss"] < first["loss"] - 0.5
    assert last["temperature"] != first["temperature"]


def test_what_is_measured_of_it(learned):
    run = semantics.open_run(learned)
    found = semantics.measure(run)
    page = semantics.write(learned, run, found)
    assert "BM25 over words" in page and "recall@10" in page
    stored = json.loads((learned / "semantics.json").read_text())
    by_name = {method["name"]: method["recall"]["1"]["value"] for method in stored["methods"]}
    own = by_name["projection of the last state"]
    assert own == pytest.approx(_lines(learned)[-1]["heldout_recall_at_1"])
    assert own > by_name["untrained: projection of the last state"]
    lead = {method["name"]: method["lead"] for method in stored["methods"]}
    assert lead["BM25 over words"] is None
    ahead = lead["projection of the last state"]["value"]
    assert ahead == pytest.approx(own - by_name["BM25 over words"])
    assert stored["heldout_loss"] == pytest.approx(_lines(learned)[-1]["heldout_loss"])
    assert {"recall.png", "map.png"} <= {path.name for path in learned.iterdir()}


def test_stopped_and_resumed(folder, tmp_path, monkeypatch):
    spec = tiny.spec(folder)
    stage.train(spec, tmp_path / "whole", console=QUIET)
    batch = spans.batch
    holder = []

    class Asked(interrupt.Interrupt):
        def __enter__(self):
            holder.append(self)
            return super().__enter__()

    def stopping(documents, *, step, **rest):
        if step == 2:
            holder[0].requested = 15
        return batch(documents, step=step, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "Interrupt", Asked)
        patch.setattr(spans, "batch", stopping)
        assert stage.train(spec, tmp_path / "parts", console=QUIET).step == 3
    assert stage.train(spec, tmp_path / "parts", console=QUIET).step == 4
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")


def test_without_the_term_the_parameters_are_those_of_a_decoder(folder, tmp_path):
    spec = tiny.spec(folder, contrastive=tiny.OFF, num_steps=2)
    row = np.zeros((1, tiny.LENGTH), np.int32)
    shapes = [
        jax.eval_shape(
            lambda model=model: model.init(
                jax.random.key(0), row, document_ids=row + 1, positions=row
            )
        )
        for model in (
            Decoder(spec.model),
            SpanDecoder(spec.model, contrastive=spec.contrastive),
        )
    ]
    assert shapes[0]["params"].keys() == shapes[1]["params"].keys()
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    stage.train(spec, tmp_path, console=QUIET)
    last = _lines(tmp_path)[-1]
    assert "contrastive_loss" not in last and "heldout_recall_at_1" in last


def _advanced(spec, data):
    """The state and metrics after two steps on the mesh of the settings."""
    layout = layout_lib.make(spec.mesh, jax.devices())
    on_mesh = layout if layout.mesh.size > 1 else None
    model = SpanDecoder(spec.model, contrastive=spec.contrastive)
    matrices = state.parameter_placement(model, sequence_length=tiny.LENGTH, mesh=layout.mesh)
    transform = optimizer.make_optimizer(spec.optimizer, num_steps=9, placement=matrices)
    abstract = state.abstract(model, transform, sequence_length=tiny.LENGTH, mesh=layout.mesh)
    shardings = state.shardings(abstract)
    train_step = step.make_step(spec, transform, on_mesh, shardings=shardings)
    now = jax.jit(
        lambda: state.initial_state(
            model, transform, jax.random.key(0), sequence_length=tiny.LENGTH
        ),
        out_shardings=shardings,
    )()
    told = []
    for number in range(2):
        taken = spans.batch(data.train, step=number, batch_size=16, span_length=tiny.LENGTH, seed=0)
        rows = {"rows": np.concatenate([taken.first, taken.second])}
        now, metrics = train_step(now, placement.put_whole_rows(layout, rows)["rows"], taken.groups)
        told.append(jax.device_get(metrics))
    return told


@pytest.fixture(scope="module")
def on_one_device(folder):
    spec = tiny.spec(folder)
    data = spans.load(spec.data, tokenizer_path=None)
    return spec, data, _advanced(spec, data)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1)])
def test_negatives_are_those_of_all_devices(on_one_device, shape):
    """On eight devices the loss is that of one: no device has negatives of its own only."""
    spec, data, alone = on_one_device
    names = dict(zip(("data", "expert", "model"), shape, strict=True))
    mesh = MeshSpec(**names, exchange="exact", rows_factor=0.0)
    there = _advanced(dataclasses.replace(spec, mesh=mesh), data)
    for first, second in zip(alone, there, strict=True):
        assert first.keys() == second.keys()
        for name in ("loss", "contrastive_loss", "gradient_norm"):
            np.testing.assert_allclose(first[name], second[name], **tolerances.MODEL_F32)


def _step_of(spec):
    """The training step on one device, and a state of a large temperature to step from."""
    model = SpanDecoder(spec.model, contrastive=spec.contrastive)
    transform = optimizer.make_optimizer(spec.optimizer, num_steps=9)
    initial = functools.partial(state.initial_state, model, transform, sequence_length=tiny.LENGTH)
    now = jax.jit(initial)(jax.random.key(0))
    return step.make_step(spec, transform, None, shardings=None), now


def test_what_is_of_one_group_is_no_negative(folder):
    """With one group in the batch nothing is left to tell apart."""
    train_step, now = _step_of(tiny.spec(folder))
    rows = np.random.default_rng(0).integers(0, 250, (32, tiny.LENGTH), np.int32)
    _, told = train_step(now, rows, np.zeros(16, np.int32))
    np.testing.assert_allclose(told["contrastive_loss"], 0.0, atol=1e-5)


def test_a_learned_scale_is_capped(folder):
    spec = tiny.spec(folder, contrastive={"temperature": 0.001})
    train_step, now = _step_of(spec)
    rows = np.random.default_rng(0).integers(0, 250, (32, tiny.LENGTH), np.int32)
    now, _ = train_step(now, rows, np.arange(16, dtype=np.int32))
    scale = np.exp(now.params["span_head"]["log_scale"])
    np.testing.assert_allclose(scale, step.MAX_SCALE, rtol=1e-5)


def test_too_few_documents_are_refused_by_name(folder, tmp_path):
    for name, value in (("batch_size", 43), ("eval_documents", 19)):
        spec = tiny.spec(folder, contrastive={name: value})
        with pytest.raises(ValueError, match=f"contrastive.{name}={value}: must be at most"):
            stage.train(spec, tmp_path / name, console=QUIET)


def test_another_corpus_is_refused(folder, tmp_path):
    copy = tmp_path / "documents"
    tiny.write_documents(copy)
    spec = tiny.spec(copy)
    stage.train(spec, tmp_path / "run", console=QUIET)
    (copy / "new.txt").write_text("x" * 80)
    again = dataclasses.replace(spec, train=dataclasses.replace(spec.train, restore_step=2))
    with pytest.raises(ValueError, match="the run began with corpus"):
        stage.train(again, tmp_path / "run", console=QUIET)
    with pytest.raises(ValueError, match="the run began with corpus"):
        semantics.open_run(tmp_path / "run")


def test_one_pass_gives_all_kinds(folder):
    spec = tiny.spec(folder)
    model = SpanDecoder(spec.model, contrastive=spec.contrastive)
    data = spans.load(spec.data, tokenizer_path=None)
    pairs = heldout.pairs(data.heldout, num=5, span_length=tiny.LENGTH)
    initial = functools.partial(
        state.initial_state, model, optimizer.without_moments(), sequence_length=tiny.LENGTH
    )
    fresh = jax.jit(initial)(jax.random.key(0))
    variables = {"params": fresh.params, "balance": fresh.balance}
    kinds = heldout.kinds_of(spec.contrastive)
    layout = layout_lib.make(mesh_spec.ONE_DEVICE, jax.devices())
    found, nats = heldout.encode_pairs(
        heldout.make_encode(model, kinds), variables, pairs, batch_size=4, layout=layout
    )
    assert set(found) == set(kinds) and nats > 0.0
    for each in found.values():
        for side in each:
            np.testing.assert_allclose(np.linalg.norm(side, axis=1), 1.0, atol=1e-5)
    table = np.asarray(fresh.params["embed"]["embedding"])
    mean = table[pairs.second[4]].mean(axis=0)
    np.testing.assert_allclose(
        found["tokens"].second[4], mean / np.linalg.norm(mean), **tolerances.MODEL_F32
    )
