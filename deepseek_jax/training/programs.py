"""What a run on text compiles, made once for all runs of equal settings in a process. Floor 5.

Tracing and compiling a model takes longer than many of its steps. Runs that differ in seed,
text, or where they were left share both.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Key, PyTree

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.run_spec import OptimizerSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.training import heldout, optimizer, state, step
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.step import Batch, TrainStep

# Of the settings used last; arms of one recipe seldom have more.
_KEPT = 4


class Programs(NamedTuple):
    """Jitted functions, each compiled when it is first called, and the state that they share.

    Attributes:
      abstract: shapes, dtypes and placement of the state.
      initial: (key) -> the state before the first step.
      adopted: (params, balance, key) -> the same, but for these parameters and choice biases; the
        optimizer's moments begin afresh.
      train_step: of `step.make_train_step`; consumes its state.
      total_nats: (params, balance, batch) -> the summed loss of held-out rows, nothing dropped.
    """

    abstract: TrainState
    initial: Callable[[Key[Array, ""]], TrainState]
    adopted: Callable[[PyTree, PyTree, Key[Array, ""]], TrainState]
    train_step: TrainStep
    total_nats: Callable[[PyTree, PyTree, Batch], Float[Array, ""]]


@functools.lru_cache(maxsize=_KEPT)
def make(
    model_spec: ModelSpec,
    optimizer_spec: OptimizerSpec,
    *,
    num_steps: int,
    num_microbatches: int,
    sequence_length: int,
    layout: Layout,
) -> Programs:
    """The programs of a run; the same ones for the same arguments.

    Args:
      model_spec: of the decoder.
      optimizer_spec: of its optimizer.
      num_steps: of the whole run, which the learning rate's schedule needs.
      num_microbatches: parts of a batch, one after the other.
      sequence_length: L of the rows.
      layout: the mesh that all of it lies on, of one device or many.
    """
    on_mesh = layout if layout.mesh.size > 1 else None
    model = Decoder(model_spec)
    transform = optimizer.make_optimizer(
        optimizer_spec,
        num_steps=num_steps,
        placement=state.parameter_placement(
            model, sequence_length=sequence_length, mesh=layout.mesh
        ),
    )
    abstract = state.abstract(model, transform, sequence_length=sequence_length, mesh=layout.mesh)
    placed = state.shardings(abstract)

    def initial(key: Key[Array, ""]) -> TrainState:
        return state.initial_state(model, transform, key, sequence_length=sequence_length)

    def adopted(params: PyTree, balance: PyTree, key: Key[Array, ""]) -> TrainState:
        opt_state = transform.init(params)
        return initial(key)._replace(params=params, balance=balance, opt_state=opt_state)

    return Programs(
        abstract,
        jax.jit(initial, out_shardings=placed),
        jax.jit(adopted, out_shardings=placed),
        step.make_train_step(
            Decoder(model_spec, on_mesh).apply,
            transform,
            num_microbatches=num_microbatches,
            bias_update_rate=model_spec.bias_update_rate,
            layout=on_mesh,
            shardings=placed,
        ),
        heldout.make_total_nats(
            Decoder(model_spec.dropless(), None if on_mesh is None else layout.exact()).apply,
            layout=layout,
        ),
    )
