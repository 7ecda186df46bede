"""Batches of packed rows: shuffled without end for training, once over for evaluation. Floor 1.

Training goes through the rows epoch by epoch, each in an order of its own, and batches the
endless sequence: a batch may hold the end of one epoch and the start of the next, so that no
row is left out or seen twice within an epoch, whatever the batch size.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Int64

from deepseek_jax.data import rows as rows_lib
from deepseek_jax.data.rows import Rows

Batch = dict[str, np.ndarray]

_NUM_THREADS = 2
_NUM_PREFETCHED = 4
_MAX_SEED = 2**32


class TrainBatches(Iterator[Batch]):
    """An endless iterator over batches, whose state is its position and fits in JSON.

    Threads prepare the next batches; they are not part of the state.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        seed: int,
        part: Int64[np.ndarray, " P"] | None = None,
    ) -> None:
        """Starts at the first batch.

        Args:
          rows: at least one.
          batch_size: B; may exceed the number of rows.
          seed: of the orders; in [0, 2**32).
          part: the places in a batch, in [0, B), whose rows are given: what one of several
            processes reads of it; None gives whole batches. The position does not depend on it.

        Raises:
          ValueError: no rows, or a seed or batch size out of range.
        """
        if rows_lib.num_rows(rows) == 0:
            raise ValueError("there are no rows to make batches of")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if not 0 <= seed < _MAX_SEED:
            raise ValueError(f"seed={seed}: must be in [0, 2**32)")
        self._settings = {
            "num_rows": rows_lib.num_rows(rows),
            "batch_size": batch_size,
            "seed": seed,
        }
        row_ids = grain.MapDataset.range(rows_lib.num_rows(rows)).seed(seed).shuffle().repeat()
        batches = row_ids.batch(batch_size, drop_remainder=True).map(
            lambda ids: _as_batch(rows_lib.take(rows, ids if part is None else ids[part]))
        )
        options = grain.ReadOptions(num_threads=_NUM_THREADS, prefetch_buffer_size=_NUM_PREFETCHED)
        self._iterator = iter(batches.to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position: what `set_state` needs to go on with the next batch; JSON-able."""
        return {**self._settings, "position": self._iterator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave, of this or another process.

        Raises:
          ValueError: the state is of other rows, another batch size or seed, or no state.
        """
        if set(state) != {*self._settings, "position"}:
            raise ValueError(f"not a data position: {state!r}")
        for name, value in self._settings.items():
            if state[name] != value:
                raise ValueError(
                    f"the data position was saved with {name}={state[name]}, "
                    f"this run has {name}={value}"
                )
        try:
            self._iterator.set_state(state["position"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"not a data position: {state!r}") from error


def eval_batches(rows: Rows, *, batch_size: int) -> Iterator[Batch]:
    """Every row once, in order; the last batch is filled with rows that are all padding.

    Raises:
      ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    for start in range(0, rows_lib.num_rows(rows), batch_size):
        part = Rows(*(array[start : start + batch_size] for array in rows))
        num_missing = batch_size - rows_lib.num_rows(part)
        yield _as_batch(Rows(*(np.pad(array, ((0, num_missing), (0, 0))) for array in part)))


def _as_batch(rows: Rows) -> Batch:
    """The arrays by name."""
    return rows._asdict()
