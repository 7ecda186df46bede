"""A bigram model of symbols, tokens or bytes: what a model must beat. Floor 5: numpy only.

V is the number of symbols. The smoothing is interpolated Kneser-Ney with one discount, a strong
choice for bigrams, so that beating it means something.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int64

from deepseek_jax.evaluation.byte_stream import Pairs

# A discount is chosen among these on the last part of the training pairs.
DISCOUNTS = tuple(round(0.05 * i, 2) for i in range(1, 20))
_TAIL_SHARE = 0.1
_DENSE_SYMBOLS = 1024
_CHUNK_PAIRS = 4_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bigram:
    """P(target | context), made by `from_pairs` or `fit`.

    Attributes:
      num_symbols: V.
      discount: what is taken from each count, in (0, 1).
      keys: the distinct training pairs as context * V + target, ascending.
      shares: probability of each such pair's target without what backing off adds.
      backoff_weights: by context, the probability that is given to `lower_probs`.
      lower_probs: by target, the distribution that contexts back off to.
    """

    num_symbols: int
    discount: float
    keys: Int64[np.ndarray, " distinct"]
    shares: Float64[np.ndarray, " distinct"]
    backoff_weights: Float64[np.ndarray, " V"]
    lower_probs: Float64[np.ndarray, " V"]

    def probs(self, pairs: Pairs) -> Float64[np.ndarray, " pairs"]:
        """P(target | context) of each pair; above 0, and over all targets of a context 1."""
        keys = _keys(pairs, num_symbols=self.num_symbols)
        found = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        shares = np.where(self.keys[found] == keys, self.shares[found], 0.0)
        return shares + self.backoff_weights[pairs.contexts] * self.lower_probs[pairs.targets]

    def terms(self, pairs: Pairs) -> Float64[np.ndarray, " pairs"]:
        """Negative log-probability of each target, in nats."""
        return -np.log(self.probs(pairs))


def fit(pairs: Pairs, *, num_symbols: int) -> Bigram:
    """The bigram of all pairs, with a discount that predicts their last tenth best.

    The discount is chosen by training on the pairs before that tenth, so held-out text has no
    part in it; then the model is made from all pairs.

    Args:
      pairs: training pairs in the order of the text, at least two.
      num_symbols: V.

    Raises:
      ValueError: fewer than two pairs, or a symbol outside [0, V).
    """
    num_pairs = len(pairs.targets)
    if num_pairs < 2:
        raise ValueError(f"a bigram needs at least 2 training pairs, got {num_pairs}")
    cut = num_pairs - max(1, int(_TAIL_SHARE * num_pairs))
    head, tail = (
        Pairs(*(array[part] for array in pairs)) for part in (slice(cut), slice(cut, None))
    )
    head_counts = _counted(head, num_symbols=num_symbols)
    losses = [
        _from_counts(*head_counts, num_symbols=num_symbols, discount=discount).terms(tail).sum()
        for discount in DISCOUNTS
    ]
    best = DISCOUNTS[int(np.argmin(losses))]
    return from_pairs(pairs, num_symbols=num_symbols, discount=best)


def from_pairs(pairs: Pairs, *, num_symbols: int, discount: float) -> Bigram:
    """The interpolated Kneser-Ney bigram of some pairs.

    With d the discount, c(v, w) the count of target w behind context v, N(v, .) the number of
    distinct targets of v, and N(., w) of distinct contexts of w:

      P(w | v) = (max(c(v, w) - d, 0) + d N(v, .) P(w)) / c(v)
      P(w) = (max(N(., w) - d, 0) + d #{w: N(., w) > 0} / V) / sum_w N(., w)

    and P(w | v) = P(w) behind a context that was never seen.

    Args:
      pairs: training pairs, at least one.
      num_symbols: V.
      discount: d, in (0, 1).

    Raises:
      ValueError: no pairs, a symbol outside [0, V), or a discount outside (0, 1).
    """
    if len(pairs.targets) == 0:
        raise ValueError("a bigram needs at least 1 training pair, got none")
    if not 0.0 < discount < 1.0:
        raise ValueError(f"discount={discount}: must be in (0, 1)")
    keys, counts = _counted(pairs, num_symbols=num_symbols)
    return _from_counts(keys, counts, num_symbols=num_symbols, discount=discount)


def _from_counts(
    keys: Int64[np.ndarray, " distinct"],
    counts: Int64[np.ndarray, " distinct"],
    *,
    num_symbols: int,
    discount: float,
) -> Bigram:
    """The model of distinct pairs with their counts."""
    contexts, targets = np.divmod(keys, num_symbols)
    context_counts = np.bincount(contexts, weights=counts, minlength=num_symbols)
    num_continuations = np.bincount(contexts, minlength=num_symbols)
    is_seen = context_counts > 0
    backoff_weights = np.where(
        is_seen, discount * num_continuations / np.where(is_seen, context_counts, 1.0), 1.0
    )
    num_histories = np.bincount(targets, minlength=num_symbols)
    uniform = discount * np.count_nonzero(num_histories) / num_symbols
    lower_probs = (np.maximum(num_histories - discount, 0.0) + uniform) / num_histories.sum()
    return Bigram(
        num_symbols=num_symbols,
        discount=discount,
        keys=keys,
        shares=(counts - discount) / context_counts[contexts],
        backoff_weights=backoff_weights,
        lower_probs=lower_probs,
    )


def _counted(
    pairs: Pairs, *, num_symbols: int
) -> tuple[Int64[np.ndarray, " distinct"], Int64[np.ndarray, " distinct"]]:
    """The distinct pairs, as ascending keys, and how often each occurs."""
    if num_symbols > _DENSE_SYMBOLS:
        keys, counts = np.unique(_keys(pairs, num_symbols=num_symbols), return_counts=True)
        return keys, counts.astype(np.int64)
    table = np.zeros(num_symbols**2, np.int64)
    for start in range(0, len(pairs.targets), _CHUNK_PAIRS):
        part = Pairs(*(array[start : start + _CHUNK_PAIRS] for array in pairs))
        table += np.bincount(_keys(part, num_symbols=num_symbols), minlength=len(table))
    keys = np.flatnonzero(table)
    return keys, table[keys]


def _keys(pairs: Pairs, *, num_symbols: int) -> Int64[np.ndarray, " pairs"]:
    """One number for each pair: context * V + target."""
    for name, symbols in pairs._asdict().items():
        if len(symbols) and not 0 <= symbols.min() <= symbols.max() < num_symbols:
            raise ValueError(
                f"{name} lie in [{symbols.min()}, {symbols.max()}], "
                f"outside the {num_symbols} symbols"
            )
    return pairs.contexts.astype(np.int64) * num_symbols + pairs.targets
