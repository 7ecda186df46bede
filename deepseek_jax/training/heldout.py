"""The held-out loss during training. Floor 5."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from deepseek_jax.data import batches, rows
from deepseek_jax.data.rows import Rows
from deepseek_jax.data.text_data import TextData
from deepseek_jax.parallel import placement
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.training import nats as nats_lib
from deepseek_jax.training import sums
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.step import Apply, Batch

Measure = Callable[[TrainState], dict[str, float]]


TotalNats = Callable[[PyTree, PyTree, Batch], Float[Array, ""]]


def make_total_nats(apply: Apply, *, layout: Layout) -> TotalNats:
    """A jitted (params, balance, batch) -> the summed loss, float32, padding left out.

    Args:
      apply: the model, `Decoder(spec).apply`.
      layout: the mesh that rows are put on.
    """
    return jax.jit(
        lambda params, balance, batch: _nats(apply, params, balance, batch, layout=layout)
    )


def make_measure(
    total_nats: TotalNats, data: TextData, *, num_rows: int, batch_size: int, layout: Layout
) -> Measure:
    """A function from a state to its held-out loss and bits per byte.

    Args:
      total_nats: of `make_total_nats`.
      data: its first held-out rows are measured, with its tokenizer's bytes.
      num_rows: how many.
      batch_size: rows of one forward pass.
      layout: the mesh that rows are put on.

    Returns:
      state -> {"heldout_loss": mean nats a target, "heldout_bits_per_byte"}.

    Raises:
      ValueError: there are fewer held-out rows, or these hold nothing but prompts.
    """
    if num_rows > rows.num_rows(data.heldout):
        raise ValueError(
            f"train.eval_rows={num_rows}: must be at most {rows.num_rows(data.heldout)}, the rows "
            "of held-out text (data.heldout_fraction decides)"
        )
    part = Rows(*(array[:num_rows] for array in data.heldout))
    num_bytes = rows.target_bytes(part, data.tokenizer.token_byte_lengths)
    num_targets = int(part.target_mask.sum())
    if not num_bytes:
        raise ValueError(
            f"train.eval_rows={num_rows}: these rows hold no text, only prompts; give more rows"
        )

    def measure(state: TrainState) -> dict[str, float]:
        nats = 0.0
        for batch in batches.eval_batches(part, batch_size=batch_size):
            on_device = placement.put_whole_rows(layout, batch)
            nats += float(jax.device_get(total_nats(state.params, state.balance, on_device)))
        return {
            "heldout_loss": nats / num_targets,
            "heldout_bits_per_byte": sums.bits_per_byte(nats=nats, num_bytes=num_bytes),
        }

    return measure


def _nats(
    apply: Apply, params: PyTree, balance: PyTree, batch: Batch, *, layout: Layout
) -> Float[Array, ""]:
    """The summed loss of a batch, padding left out."""
    output = apply(
        {"params": params, "balance": balance},
        batch["tokens"],
        document_ids=batch["document_ids"],
        positions=batch["positions"],
    )
    weights = batch["target_mask"].astype(jnp.float32)
    return nats_lib.weighted(output, batch["targets"], weights, layout=layout)
