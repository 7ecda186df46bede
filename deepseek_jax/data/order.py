"""Which rows a step takes: shuffled epoch by epoch, by the number of the step alone. Floor 1."""

import numpy as np
from jaxtyping import Int


def batch_ids(*, step: int, batch_size: int, num_rows: int, seed: int) -> Int[np.ndarray, " B"]:
    """The rows of a batch. A run that goes on needs no saved position to take the same ones.

    Args:
      step: from 0.
      batch_size: B.
      num_rows: of the table; each is taken once an epoch, whatever B is.
      seed: of the orders.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // num_rows
    orders = {
        epoch: np.random.default_rng([seed, epoch]).permutation(num_rows)
        for epoch in np.unique(epochs).tolist()
    }
    return np.array(
        [orders[epoch][place] for epoch, place in zip(epochs, places % num_rows, strict=True)]
    )
