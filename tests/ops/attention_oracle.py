"""Attention written a second time, query by query in float64 numpy: who sees whom, in words."""

import numpy as np


def attend_one(query, keys, values):
    """softmax(q . k / sqrt(H)) over a list of keys; zero without keys."""
    if not keys:
        return np.zeros_like(query, np.float64)
    keys, values = np.asarray(keys, np.float64), np.asarray(values, np.float64)
    logits = keys @ np.asarray(query, np.float64) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max())
    return weights @ values / weights.sum()


def local_global(query, key, value, document_ids, summaries, *, block_size):
    """What `attention.local_global_attention` promises, one query and head at a time."""
    num_sequences, length, num_heads, _ = query.shape
    group = num_heads // key.shape[2]
    out = np.zeros(query.shape, np.float64)
    for b in range(num_sequences):
        for i in range(length):
            own = document_ids[b, i]
            if own == 0:
                continue
            block = i // block_size
            for n in range(num_heads):
                m = n // group
                seen = [j for j in range(block * block_size, i + 1) if document_ids[b, j] == own]
                keys = [key[b, j, m] for j in seen]
                values = [value[b, j, m] for j in seen]
                if summaries is not None:
                    for j in range(block):
                        if summaries.document_ids[b, j] == own:
                            keys += list(summaries.key[b, j, :, m])
                            values += list(summaries.value[b, j, :, m])
                out[b, i, n] = attend_one(query[b, i, n], keys, values)
    return out


def full(query, key, value, document_ids):
    """Full causal attention is one block as long as the sequence."""
    length = query.shape[1]
    return local_global(query, key, value, document_ids, None, block_size=length)


def compress(key, value, document_ids, queries, positions, *, block_size):
    """What `summaries.summarize_blocks` promises: pooled keys and values of every block."""
    num_sequences, length, num_kv_heads, head_dim = key.shape
    num_blocks, num_summaries = length // block_size, queries.shape[1]
    shape = (num_sequences, num_blocks, num_summaries, num_kv_heads, head_dim)
    pooled_key, pooled_value = np.zeros(shape), np.zeros(shape)
    for b in range(num_sequences):
        for j in range(num_blocks):
            last = (j + 1) * block_size - 1
            alive = document_ids[b, last]
            used = [
                c
                for c in range(block_size)
                if alive != 0 and document_ids[b, j * block_size + c] == alive
            ]
            if not used:
                continue
            for m in range(num_kv_heads):
                for i in range(num_summaries):
                    rows = np.array([key[b, j * block_size + c, m] for c in used], np.float64)
                    logits = rows @ queries[m, i] / np.sqrt(head_dim) + positions[m, i, used]
                    shares = np.exp(logits - logits.max())
                    shares /= shares.sum()
                    pooled_key[b, j, i, m] = shares @ rows
                    pooled_value[b, j, i, m] = shares @ np.array(
                        [value[b, j * block_size + c, m] for c in used], np.float64
                    )
    return pooled_key, pooled_value
