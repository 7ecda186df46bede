"""The only tolerances in the tests, by dtype and depth; to relax one needs a decision record."""

from typing import Any

OP_F32: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
LAYER_F32: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
MODEL_F32: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
BF16: dict[str, Any] = {"rtol": 2e-2, "atol": 1e-2}
