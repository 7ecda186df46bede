"""What config files share: settings that may be None, variants, and dense twins."""

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

# What a dense model must say of the router that it does not have.
_NO_ROUTER = {
    "num_experts": 1,
    "num_groups": 1,
    "top_groups": 1,
    "top_k": 1,
    "num_shared_experts": 0,
    "router_scores": "softmax",
    "router_weights": "raw",
    "router_scale": 1.0,
    "balance": "none",
    "load_balance_weight": 0.0,
    "router_z_weight": 0.0,
    "bias_update_rate": 0.0,
    "dispatch": "dropless",
    "expert_kernel": "loop",
    "capacity_factor": 0.0,
}

# The changes of a variant that trains with a fixed number of rows an expert, which needs no kernel.
CAPACITY: dict[str, Any] = {"model.dispatch": "capacity", "model.capacity_factor": 1.25}


class UnknownVariantError(LookupError):
    """A config file has no such variant (no ValueError: ml_collections buries those)."""


def optional(value: Any = None) -> config_dict.FieldReference:
    """A setting that may be None: a command line may give it a value, or "None"."""
    reference = config_dict.placeholder(object)
    reference.set(value)
    return reference


def with_variant(
    config: config_dict.ConfigDict, variant: str, own: Mapping[str, Mapping[str, Any]]
) -> config_dict.ConfigDict:
    """The settings of a variant of a sparse preset.

    Every sparse preset has two dense twins, alike in all but the feed-forward part, in which
    one network takes the place of the router and the experts: `dense_active` is as wide as the
    experts that one token visits, `dense_total` as wide as all of them.

    Args:
      config: the settings of the preset; changed in place.
      variant: what stands after the colon of `--config=FILE:VARIANT`; "" is the preset itself.
      own: the changes of each variant that this preset has besides, by dotted name.

    Raises:
      UnknownVariantError: there is no such variant.
    """
    model = config.model
    changes: dict[str, Mapping[str, Any]] = {
        "": {},
        **own,
        "dense_active": _dense(model, num_experts=model.top_k + model.num_shared_experts),
        "dense_total": _dense(model, num_experts=model.num_experts + model.num_shared_experts),
    }
    check_variant(variant, changes)
    config.update_from_flattened_dict(changes[variant])
    return config


def check_variant(variant: str, known: Mapping[str, Any]) -> None:
    """Raises UnknownVariantError, with the nearest known name, unless `variant` is known."""
    if variant not in known:
        names = [name for name in known if name]
        near = difflib.get_close_matches(variant, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names) or 'none'}"
        raise UnknownVariantError(f"unknown variant {variant!r}; {hint}")


def _dense(model: config_dict.ConfigDict, *, num_experts: int) -> dict[str, Any]:
    """The changes that put one network, as wide as `num_experts` experts, in their place."""
    changes = {**_NO_ROUTER, "expert_hidden_dim": num_experts * model.expert_hidden_dim}
    return {f"model.{name}": value for name, value in changes.items()}
