"""What a decoder prefers: the mean over what differs, computed again token by token."""

import jax
import numpy as np
import pytest

from deepseek_jax.reinforcement import replies
from deepseek_jax.reinforcement.pairs import Pairs
from tests import tiny, tolerances


@pytest.mark.deep
def test_the_mean_is_over_what_differs_given_what_does_not():
    model, variables = tiny.make(tiny.SPARSE)
    random = np.random.default_rng(0)
    chosen = random.integers(2, 50, (3, 16)).astype(np.int32)
    rejected = random.integers(2, 50, (3, 16)).astype(np.int32)
    firsts, lengths = (5, 3, 9), ((16, 8), (7, 7), (10, 14))
    for i, first in enumerate(firsts):
        rejected[i, :first] = chosen[i, :first]
        rejected[i, first] = (chosen[i, first] + 1) % 50
    sizes = np.array(lengths, np.int32)
    found = replies.gaps(
        model,
        variables,
        Pairs(chosen, sizes[:, 0], rejected, sizes[:, 1], np.arange(3)),
        batch_size=2,
    )
    for i, first in enumerate(firsts):
        means = []
        for row, length in zip((chosen[i], rejected[i]), lengths[i], strict=True):
            whole = np.arange(16, dtype=np.int32)[None]
            logits = tiny.applied(
                model,
                variables,
                row[None],
                document_ids=np.where(whole < length, 1, 0).astype(np.int32),
                positions=whole,
            ).logits[0]
            logprobs = jax.nn.log_softmax(logits)
            means.append(np.mean([logprobs[t - 1, row[t]] for t in range(first, length)]))
        np.testing.assert_allclose(found[i], means[0] - means[1], **tolerances.MODEL_F32)
