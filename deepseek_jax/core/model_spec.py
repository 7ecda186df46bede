"""Typed, frozen settings of the decoder: `config.model`. Floor 0.

A spec that exists is valid: every range and cross-field rule is checked when it is made,
before any compilation. There are no defaults; the config file states every value.
"""

import dataclasses
from typing import Literal

from deepseek_jax.core.config import require

Remat = Literal["none", "experts", "block"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The decoder. Sizes are counts of elements; weights and factors are dimensionless.

    One expert (`num_experts=1`) is the dense feed-forward network: it has no router, so every
    router setting must then hold its neutral value.

    Attributes:
      vocab_size: V, entries of the embedding table; at least the tokenizer's size.
      context_length: longest sequence in tokens that caches are sized for.
      num_layers: decoder blocks.
      model_dim: D, width of the residual stream.
      num_heads: N, query heads.
      num_kv_heads: key/value heads; divides num_heads.
      head_dim: H, width of a head; even, for rotary pairs.
      rope_base: base of the rotary frequencies.
      attention: "local_global" (blocks and summaries) or "full" (causal baseline).
      block_size: C, tokens of an attention block; for "full" the side of the tiles of "tiles".
        Rows are multiples of it.
      attention_kernel: what computes full attention: "tiles" (`ops/attention.py`, any device),
        "triton" (`ops/flash`, NVIDIA GPUs), or "auto", what is meant for the device. "tiles" with
        "local_global".
      num_summaries: m, key/value summaries of a finished block; 0 is local attention only.
      num_experts: E, routed experts; 1 is a dense network.
      num_groups: groups of equal size that the experts stand in.
      top_groups: groups that a token may choose experts from.
      top_k: K, experts of a token.
      num_shared_experts: experts that every token visits, beside the routed ones.
      expert_hidden_dim: F, SwiGLU width of one expert.
      router_scores: scores of the experts from the logits.
      router_weights: "raw" scores, or "renormalized" to sum to 1 over the chosen.
      router_scale: factor on the weights.
      balance: "loss" (load-balancing loss), "bias" (DeepSeek-V3's choice bias), or "none",
        which only a dense network may have.
      load_balance_weight: factor of the load-balancing loss.
      router_z_weight: factor of the router z-loss.
      bias_update_rate: step of the choice bias after each training step.
      dispatch: "dropless", or "capacity" with a fixed number of rows an expert.
      capacity_factor: rows of an expert over their expected number; 0.0 when dropless.
      expert_kernel: what computes dropless experts: "loop" over blocks of rows (off the CPU all
        of few experts at once), or grouped matmuls by "triton", "hopper" or "megablox"
        (`ops/grouped/matmul.py`), or "auto", what is meant for the device: on NVIDIA GPUs kernels,
        but "loop" for few experts of float32. "loop" in a dense model.
      tie_embeddings: the output head is the embedding table.
      norm_eps: epsilon of the RMS norms.
      remat: what the backward pass recomputes: "none"; "experts", the rows of dropless experts that
        have a kernel, their products with gate and up, and the hidden layer; or "block", all
        activations of a block.
      scan_unroll: layers written out in each step of the loop over layers, at most all: more are
        faster on a GPU, which then copies less, and take longer to compile. Rounding aside, changes
        no result.
      compute_dtype: dtype of activations and matmuls; parameters stay float32.
    """

    vocab_size: int
    context_length: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_base: float
    attention: Literal["local_global", "full"]
    block_size: int
    attention_kernel: Literal["auto", "tiles", "triton"]
    num_summaries: int
    num_experts: int
    num_groups: int
    top_groups: int
    top_k: int
    num_shared_experts: int
    expert_hidden_dim: int
    router_scores: Literal["softmax", "sigmoid"]
    router_weights: Literal["raw", "renormalized"]
    router_scale: float
    balance: Literal["loss", "bias", "none"]
    load_balance_weight: float
    router_z_weight: float
    bias_update_rate: float
    dispatch: Literal["dropless", "capacity"]
    capacity_factor: float
    expert_kernel: Literal["auto", "loop", "triton", "hopper", "megablox"]
    tie_embeddings: bool
    norm_eps: float
    remat: Remat
    scan_unroll: int
    compute_dtype: Literal["float32", "bfloat16"]

    def __post_init__(self) -> None:
        """Checks ranges and cross-field rules."""
        for name in (
            "vocab_size",
            "context_length",
            "num_layers",
            "model_dim",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "block_size",
            "num_experts",
            "num_groups",
            "top_groups",
            "top_k",
            "expert_hidden_dim",
            "scan_unroll",
        ):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        for name in ("num_summaries", "num_shared_experts"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "at least 0")
        require(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "even")
        require(
            self.num_heads % self.num_kv_heads == 0,
            "model.num_kv_heads",
            self.num_kv_heads,
            f"a divisor of model.num_heads={self.num_heads}",
        )
        require(
            self.scan_unroll <= self.num_layers,
            "model.scan_unroll",
            self.scan_unroll,
            f"at most model.num_layers={self.num_layers}",
        )
        require(self.rope_base > 1.0, "model.rope_base", self.rope_base, "above 1")
        require(0.0 < self.norm_eps < 1.0, "model.norm_eps", self.norm_eps, "in (0, 1)")
        self._check_attention()
        self._check_router()
        self._check_balance()

    def _check_attention(self) -> None:
        require(
            self.context_length % self.block_size == 0,
            "model.context_length",
            self.context_length,
            f"a multiple of model.block_size={self.block_size}",
        )
        require(
            self.attention == "local_global" or self.num_summaries == 0,
            "model.num_summaries",
            self.num_summaries,
            'zero when model.attention="full", which has no summaries',
        )
        require(
            self.num_summaries <= self.block_size,
            "model.num_summaries",
            self.num_summaries,
            f"at most model.block_size={self.block_size}",
        )
        require(
            self.attention == "full" or self.attention_kernel == "tiles",
            "model.attention_kernel",
            self.attention_kernel,
            "'tiles' when model.attention=\"local_global\", which has no other",
        )

    def _check_router(self) -> None:
        require(
            self.num_experts % self.num_groups == 0,
            "model.num_groups",
            self.num_groups,
            f"a divisor of model.num_experts={self.num_experts}",
        )
        require(
            self.top_groups <= self.num_groups,
            "model.top_groups",
            self.top_groups,
            f"at most model.num_groups={self.num_groups}",
        )
        reachable = self.top_groups * (self.num_experts // self.num_groups)
        require(
            self.top_k <= reachable,
            "model.top_k",
            self.top_k,
            f"at most {reachable}, the experts in model.top_groups={self.top_groups} groups",
        )
        require(self.router_scale > 0.0, "model.router_scale", self.router_scale, "above 0")
        if self.is_dense:
            neutral = {
                "num_shared_experts": 0,
                "router_scores": "softmax",
                "router_weights": "raw",
                "router_scale": 1.0,
                "dispatch": "dropless",
                "expert_kernel": "loop",
            }
            for name, value in neutral.items():
                require(
                    getattr(self, name) == value,
                    f"model.{name}",
                    getattr(self, name),
                    f"{value!r} in a dense model (model.num_experts=1), which has no router",
                )
        if self.remat == "experts":
            require(
                self.expert_kernel != "loop",
                "model.remat",
                self.remat,
                "'none' or 'block' with model.expert_kernel='loop': the loop over rows makes the "
                "hidden layer again anyway, and a dense model has no experts",
            )
            require(
                self.dispatch == "dropless",
                "model.remat",
                self.remat,
                "'none' or 'block' with model.dispatch='capacity', which uses no kernel",
            )
        if self.dispatch == "capacity":
            require(
                self.capacity_factor >= 1.0,
                "model.capacity_factor",
                self.capacity_factor,
                "at least 1",
            )
        else:
            require(
                self.capacity_factor == 0.0,
                "model.capacity_factor",
                self.capacity_factor,
                '0.0 when model.dispatch="dropless", which has no capacity',
            )

    def _check_balance(self) -> None:
        weights = {
            "load_balance_weight": self.load_balance_weight,
            "router_z_weight": self.router_z_weight,
            "bias_update_rate": self.bias_update_rate,
        }
        for name, value in weights.items():
            require(value >= 0.0, f"model.{name}", value, "at least 0")
        require(
            (self.balance == "none") == self.is_dense,
            "model.balance",
            self.balance,
            '"none" in a dense model and "loss" or "bias" in a sparse one: '
            "an unbalanced router starves its experts",
        )
        needed = {"loss": "load_balance_weight", "bias": "bias_update_rate"}
        for balance, name in needed.items():
            chosen = self.balance == balance
            require(
                (weights[name] > 0.0) == chosen,
                f"model.{name}",
                weights[name],
                f"{'above 0' if chosen else '0.0'} with model.balance={self.balance!r}",
            )
        require(
            not self.is_dense or self.router_z_weight == 0.0,
            "model.router_z_weight",
            self.router_z_weight,
            "0.0 in a dense model, which has no router",
        )

    @property
    def is_dense(self) -> bool:
        """Whether the feed-forward part is one network that every token visits."""
        return self.num_experts == 1

    @property
    def num_blocks(self) -> int:
        """Attention blocks of a full context."""
        return self.context_length // self.block_size

    def dropless(self) -> "ModelSpec":
        """The same model with no assignment dropped: for evaluation and generation."""
        return dataclasses.replace(self, dispatch="dropless", capacity_factor=0.0)
