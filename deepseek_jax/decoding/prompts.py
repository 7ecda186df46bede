"""Prompts of different lengths as one array. Floor 4."""

from collections.abc import Sequence

import numpy as np


def pad_prompts(
    prompts: Sequence[np.ndarray], *, block_size: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads prompts to a common whole number of blocks.

    Args:
      prompts: token ids of each prompt; none may be empty.
      block_size: C.
      pad_id: fills the rest; never attended.

    Returns:
      tokens [B, P] int32 with P a multiple of C, and lengths [B] int32.

    Raises:
      ValueError: no prompt, or an empty one (named by its index).
    """
    if not prompts:
        raise ValueError("no prompts were given")
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {index} is empty: it must hold at least one token")
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    width = -(-int(lengths.max()) // block_size) * block_size
    tokens = np.full((len(prompts), width), pad_id, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths
