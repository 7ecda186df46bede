"""The order of rows: every row once an epoch, the same whenever one asks."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from deepseek_jax.data import order


@hypothesis.given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 9))
def test_every_row_once_an_epoch_whatever_the_batch(num_rows, batch_size, seed):
    num_steps = -(-3 * num_rows // batch_size)
    taken = np.concatenate(
        [
            order.batch_ids(step=step, batch_size=batch_size, num_rows=num_rows, seed=seed)
            for step in range(num_steps)
        ]
    )
    for epoch in range(3):
        ids = taken[epoch * num_rows : (epoch + 1) * num_rows]
        assert sorted(ids.tolist()) == list(range(num_rows))
    whole = order.batch_ids(step=0, batch_size=len(taken), num_rows=num_rows, seed=seed)
    np.testing.assert_array_equal(taken, whole)


def test_epochs_and_seeds_differ():
    def epoch(number, seed):
        return order.batch_ids(step=number, batch_size=50, num_rows=50, seed=seed).tolist()

    orders = [epoch(0, 1), epoch(1, 1), epoch(0, 2), list(range(50))]
    assert len({tuple(each) for each in orders}) == 4
    assert epoch(1, 1) == orders[1]
