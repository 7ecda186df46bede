"""What a decoder of given settings holds and costs, by arithmetic alone. Floor 0.

Letters as in docs/notation.md: D model, N query heads, M key/value heads, H head width,
V vocabulary, E experts, K experts per token, F expert hidden, C attention block, m summaries.
"""

import dataclasses
from typing import NamedTuple

from deepseek_jax.core.model_spec import ModelSpec, Remat

# The backward pass of a product makes two products of the same size.
TRAINING_PASSES = 3


class PartCount(NamedTuple):
    """Parameters of one kind in the whole model, and how many of them one token uses."""

    total: int
    active: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters by part, all layers together.

    A token looks up one row of the input table, so the table is not active, unless it is also
    the output head (tied embeddings), which every token multiplies with; all else that every
    token visits is active. The choice bias of the router is state and no parameter.

    Attributes:
      embedding: the table [V, D]; also the head if tied.
      head: the output matrix [D, V]; none if tied.
      attention: query, key, value and output projections.
      summaries: what compresses finished blocks.
      norms: scales of the RMS norms, those of queries and keys included.
      router: the gates [D, E]; none in a dense model.
      experts: the routed experts, or the one network of a dense model.
      shared_experts: the experts that every token visits besides.
    """

    embedding: PartCount
    head: PartCount
    attention: PartCount
    summaries: PartCount
    norms: PartCount
    router: PartCount
    experts: PartCount
    shared_experts: PartCount

    @property
    def parts(self) -> dict[str, PartCount]:
        """The parts by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(part.total for part in self.parts.values())

    @property
    def active(self) -> int:
        """Parameters that one token uses; an input table that is only looked up is not."""
        return sum(part.active for part in self.parts.values())

    @property
    def active_with_embedding(self) -> int:
        """The other convention: the whole input table counts as active."""
        return self.active - self.embedding.active + self.embedding.total

    @property
    def active_share(self) -> float:
        """`active` over `total`."""
        return self.active / self.total


class TokenFlops(NamedTuple):
    """Floating-point operations for one token, by kind; a multiply-add counts as two.

    Only what the result needs is counted: nothing for masked products, for rows that pad an
    expert's capacity, or for elementwise work.
    """

    matrices: float  # products with parameters, active ones
    attention: float  # scores and weighted values
    summaries: float  # compression of blocks, spread over their tokens

    @property
    def total(self) -> float:
        """All kinds together."""
        return sum(self)


def count_parameters(spec: ModelSpec) -> ParameterCount:
    """The parameters of the decoder, by part."""
    layers, dim, kv_heads, head_dim = (
        spec.num_layers,
        spec.model_dim,
        spec.num_kv_heads,
        spec.head_dim,
    )
    table = spec.vocab_size * dim
    projections = 2 * dim * spec.num_heads * head_dim + 2 * dim * kv_heads * head_dim
    summaries = 0
    if spec.num_summaries:
        per_summary = head_dim + spec.block_size  # a query, and a weight for each position
        summaries = kv_heads * spec.num_summaries * per_summary + head_dim  # and their norm
    norms = layers * (2 * dim + 2 * head_dim) + dim
    router = 0 if spec.is_dense else dim * spec.num_experts
    expert = 3 * dim * spec.expert_hidden_dim

    def used_by_all(count: int) -> PartCount:
        return PartCount(count, count)

    return ParameterCount(
        embedding=PartCount(table, table if spec.tie_embeddings else 0),
        head=used_by_all(0 if spec.tie_embeddings else table),
        attention=used_by_all(layers * projections),
        summaries=used_by_all(layers * summaries),
        norms=used_by_all(norms),
        router=used_by_all(layers * router),
        experts=PartCount(layers * spec.num_experts * expert, layers * spec.top_k * expert),
        shared_experts=used_by_all(layers * spec.num_shared_experts * expert),
    )


def cache_bytes(spec: ModelSpec, *, bytes_per_element: int) -> int:
    """Bytes of the key/value cache of one sequence as long as the context, all layers.

    Local-global attention keeps one block and m summaries of every block; full attention keeps
    the whole context.
    """
    if spec.attention == "full":
        entries = spec.context_length
    else:
        entries = spec.block_size + spec.num_blocks * spec.num_summaries
    per_entry = 2 * spec.num_kv_heads * spec.head_dim  # a key and a value for each head
    return spec.num_layers * entries * per_entry * bytes_per_element


def forward_flops(spec: ModelSpec, *, position: int) -> TokenFlops:
    """Operations of the token at `position` (0 is the first) of a single document.

    The token sees itself and what is before it: in local-global attention the tokens of its
    own block and m summaries of every earlier block.
    """
    if spec.attention == "full":
        seen = position + 1
    else:
        num_finished, within = divmod(position, spec.block_size)
        seen = within + 1 + num_finished * spec.num_summaries
    return _flops(spec, float(seen))


def mean_forward_flops(spec: ModelSpec, *, length: int) -> TokenFlops:
    """Operations of a token, on average over a single document of `length` tokens."""
    if spec.attention == "full":
        return _flops(spec, (length + 1) / 2)
    num_finished, rest = divmod(length, spec.block_size)
    local = num_finished * _triangle(spec.block_size) + _triangle(rest)
    earlier_blocks = spec.block_size * _triangle(num_finished - 1) + rest * num_finished
    return _flops(spec, (local + spec.num_summaries * earlier_blocks) / length)


def training_flops(spec: ModelSpec, *, length: int) -> float:
    """Operations of training on a token: forward and backward, recomputation not included."""
    return TRAINING_PASSES * mean_forward_flops(spec, length=length).total


def recomputed_flops(spec: ModelSpec, *, length: int) -> float:
    """Operations that `remat` adds to training on a token.

    Of "block" the layers once more, of "experts" the products with gate and up of K experts.
    """
    match spec.remat:
        case "none":
            return 0.0
        case "experts":
            products = spec.top_k * 2 * spec.model_dim * spec.expert_hidden_dim
            return 2.0 * spec.num_layers * products
        case "block":
            head = 2.0 * spec.model_dim * spec.vocab_size
            return mean_forward_flops(spec, length=length).total - head


def kept_by_experts(spec: ModelSpec, *, remat: Remat, bytes_per_element: int) -> int:
    """Bytes a token and layer that dropless experts with a kernel keep for the backward pass.

    Of each of its K rows its weight, the two maps of the plan, and the row itself, its products
    with gate and up and its hidden layer; if they are recomputed, the token instead of these. With
    "block" it is nothing: a block keeps its own input only, whatever it is made of.
    """
    if remat == "block":
        return 0
    weights_and_maps = spec.top_k * (4 + 2 * 4)
    if remat == "experts":
        return weights_and_maps + spec.model_dim * bytes_per_element
    each_row = spec.model_dim + 3 * spec.expert_hidden_dim
    return weights_and_maps + spec.top_k * each_row * bytes_per_element


def _flops(spec: ModelSpec, seen: float) -> TokenFlops:
    """Operations of a token whose query sees `seen` keys."""
    count = count_parameters(spec)
    in_no_matrix = count.norms.active + count.summaries.active
    # Of each key of a block: a product with every summary's query, a weighted key and value.
    compressed = 3 * spec.num_summaries * spec.num_kv_heads * spec.head_dim
    return TokenFlops(
        matrices=2.0 * (count.active - in_no_matrix),
        attention=2.0 * spec.num_layers * 2 * spec.num_heads * spec.head_dim * seen,
        summaries=2.0 * spec.num_layers * compressed,
    )


def _triangle(n: int) -> int:
    """0 + 1 + ... + n, and 0 for n = -1."""
    return n * (n + 1) // 2
