"""The whole training step of the laptop preset on eight devices, against one."""

import collections
import dataclasses
import functools
import pathlib

import chex
import jax
import numpy as np
import pytest

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.ops import grouped_swiglu
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel import placement, program, traffic
from deepseek_jax.training import optimizer, state, step
from experiments import settings
from tests import tolerances

pytestmark = pytest.mark.deep

LAPTOP = pathlib.Path(__file__).parents[2] / "experiments" / "configs" / "laptop.py"
NUM_STEPS = 20
ROWS, LENGTH = 8, 128


@pytest.fixture(scope="module", autouse=True)
def equal_blocks():
    """Blocks of one size on every mesh: XLA adds up blocks of other sizes in another order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped_swiglu, "block_rows_for", lambda *_: 8)
        yield


def _spec():
    """The preset, with a warmup that lets 20 steps move the parameters."""
    config = settings.load_config(str(LAPTOP))
    config.train.num_steps, config.optimizer.warmup_steps = 40, 5
    return settings.freeze(config)


def _exact(data, expert, model):
    return MeshSpec(data=data, expert=expert, model=model, exchange="exact", rows_factor=0.0)


def _batch(number):
    """Rows of few frequent tokens and many rare ones, in two documents with padding behind."""
    random = np.random.default_rng(number)
    tokens = np.minimum(random.zipf(1.3, (ROWS, LENGTH + 1)), 4095).astype(np.int32)
    index = np.arange(LENGTH)[None] + np.zeros((ROWS, 1), np.int64)
    ends = random.integers(25, 125, (ROWS, 2))
    document_ids = 1 + (index >= ends.min(1)[:, None]).astype(np.int32)
    document_ids = np.where(index < ends.max(1)[:, None], document_ids, 0).astype(np.int32)
    starts = np.where(document_ids == 2, ends.min(1)[:, None], 0)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "target_mask": document_ids > 0,
        "document_ids": document_ids,
        "positions": np.where(document_ids > 0, index - starts, 0).astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class _Run:
    """Twenty steps on a mesh."""

    losses: np.ndarray
    norms: np.ndarray
    visits: float
    params: dict


def _compiled(mesh):
    """The program of a step on a mesh, its first state and its layout."""
    spec = _spec()
    layout = layout_lib.make(mesh, jax.devices())
    model = Decoder(spec.model)
    where = state.parameter_placement(model, sequence_length=LENGTH, mesh=layout.mesh)
    transform = optimizer.make_optimizer(spec.optimizer, num_steps=40, placement=where)
    abstract = state.abstract(model, transform, sequence_length=LENGTH, mesh=layout.mesh)
    shardings = state.shardings(abstract)
    on_mesh = layout if mesh.num_devices > 1 else None
    train_step = step.make_train_step(
        Decoder(spec.model, on_mesh).apply,
        transform,
        num_microbatches=spec.train.num_microbatches,
        bias_update_rate=spec.model.bias_update_rate,
        layout=on_mesh,
        shardings=shardings,
    )
    initial = functools.partial(
        state.initial_state, model, transform, jax.random.key(3), sequence_length=LENGTH
    )
    current = jax.jit(initial, out_shardings=shardings)()
    lowered = train_step.lower(current, placement.put_whole_rows(layout, _batch(0)))
    return lowered.compile(), current, layout


@functools.cache
def _run(mesh):
    compiled, current, layout = _compiled(mesh)
    seen = []
    for number in range(NUM_STEPS):
        current, metrics = compiled(current, placement.put_whole_rows(layout, _batch(number)))
        seen.append(jax.device_get(metrics))
    stats = seen[-1].stats
    return _Run(
        np.array([metrics.loss for metrics in seen]),
        np.array([metrics.gradient_norm for metrics in seen]),
        float(stats.visits.sum() / stats.num_tokens.sum()),
        jax.device_get(current.params),
    )


@pytest.mark.parametrize(
    "mesh",
    [
        # The next cuts over all axes; those of one axis take as long.
        pytest.param(_exact(1, 8, 1), marks=pytest.mark.slow),
        pytest.param(_exact(8, 1, 1), marks=pytest.mark.slow),
        _exact(2, 2, 2),
    ],
    ids=str,
)
def test_twenty_steps_equal_those_of_one_device(mesh):
    one, many = _run(mesh_spec.ONE_DEVICE), _run(mesh)
    assert one.losses[0] - one.losses[-1] > 1.0  # the steps do something
    np.testing.assert_allclose(many.losses, one.losses, **tolerances.LAYER_F32)
    np.testing.assert_allclose(many.norms, one.norms, **tolerances.MODEL_F32)
    # Matrix by matrix: AdamW makes whole steps of single gradients that are mere rounding.
    chex.assert_trees_all_equal_structs(many.params, one.params)
    for got, want in zip(jax.tree.leaves(many.params), jax.tree.leaves(one.params), strict=True):
        error = np.linalg.norm(got - want)
        assert error < tolerances.LAYER_F32["rtol"] * np.linalg.norm(want)
    assert one.visits == 1.0 and min(mesh.expert, 1.01) <= many.visits <= min(mesh.expert, 4)


def test_the_compiled_step_sends_what_arithmetic_says():
    spec, mesh = _spec(), _exact(1, 8, 1)
    compiled = collections.Counter()
    for collective in program.collectives(_compiled(mesh)[0].as_text()):
        compiled[collective.kind] += collective.num_bytes * collective.num_runs
    counted = collections.Counter()
    for transfer in traffic.training_step(
        spec.model,
        mesh,
        num_rows=ROWS,
        length=LENGTH,
        num_microbatches=1,
        optimizer=spec.optimizer.name,
    ):
        counted[transfer.kind] += transfer.num_bytes * transfer.num_calls
    for kind in ("all-to-all", "all-gather"):
        assert compiled[kind] == counted[kind] > 0
    # On the CPU gradients that would be scattered are summed whole, 8 times the bytes; scalars,
    # norms and statistics of the router, not counted, come to less than 2%.
    summed = 8 * counted["reduce-scatter"]
    assert 0 <= compiled["all-reduce"] - summed < 0.02 * summed
