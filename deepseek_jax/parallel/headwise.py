"""A function of each row and key/value head by itself, on many devices. Floor 2.

What the compiler cannot cut, a kernel, would otherwise bring all rows and heads to every device.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int

from deepseek_jax.parallel import rules
from deepseek_jax.parallel.layout import Layout

Attend = Callable[[Array, Array, Array, Array], Array]


def apply(
    layout: Layout | None,
    attend: Attend,
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    document_ids: Int[Array, "B L"],
) -> Float[Array, "B L N H"]:
    """`attend(query, key, value, document_ids)`, each device with the rows and heads on it.

    Args:
      layout: the mesh; None calls the function as it is.
      attend: answers to queries; none may depend on other rows, or on other key/value heads than
        its own, which are dealt out as in `ops/attention.py`.
      query: [B, L, N, H] cut by rows over data and expert, by heads over model.
      key: [B, L, M, H] cut alike.
      value: [B, L, M, H] cut alike.
      document_ids: [B, L] cut by rows.

    Returns:
      [B, L, N, H] cut as `query` is.

    Raises:
      ValueError: rows or key/value heads cannot be cut evenly (trace time).
    """
    if layout is None:
        return attend(query, key, value, document_ids)
    num_rows, num_kv_heads = query.shape[0], key.shape[2]
    if num_rows % layout.spec.num_row_shards or num_kv_heads % layout.spec.model:
        raise ValueError(
            f"{num_rows} rows and {num_kv_heads} key/value heads on a mesh of {layout.spec}: "
            f"must be multiples of {layout.spec.num_row_shards} and {layout.spec.model}"
        )
    heads = rules.partition_spec(("batch", None, "heads", None))
    kv_heads = rules.partition_spec(("batch", None, "kv_heads", None))
    mapped = jax.shard_map(
        attend,
        mesh=layout.mesh,
        in_specs=(heads, kv_heads, kv_heads, rules.partition_spec(("batch", None))),
        out_specs=heads,
    )
    return mapped(query, key, value, document_ids)
