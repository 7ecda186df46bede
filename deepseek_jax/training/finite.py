"""The stop at a loss or gradient that is not finite. Floor 5."""

from collections.abc import Mapping

import numpy as np

from deepseek_jax.training.step import StepMetrics


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite; the update was not applied."""


def check(metrics: StepMetrics, *, step: int, parameter_names: list[str]) -> None:
    """Raises unless a step's loss and gradients are finite.

    Args:
      metrics: of the step, on the host.
      step: its number, counted from 1.
      parameter_names: names of the leaves of `params`, in order.

    Raises:
      NonFiniteError: names the step, the loss and the first parameter whose gradient is not
        finite.
    """
    if np.isfinite([metrics.loss, metrics.aux_loss, metrics.gradient_norm]).all():
        return
    bad = np.flatnonzero(~np.asarray(metrics.gradient_is_finite))
    where = "the gradient of every parameter is finite by itself"
    if bad.size:
        where = (
            f"the first of {bad.size} parameters whose gradient is not finite is "
            f"{parameter_names[bad[0]]}"
        )
    raise NonFiniteError(
        f"step {step}: loss {float(metrics.loss)}, aux_loss {float(metrics.aux_loss)}, gradient "
        f"norm {float(metrics.gradient_norm)}; {where}. The update was not applied; the last "
        "checkpoint is left as it was."
    )


def check_heldout(measured: Mapping[str, float], *, step: int) -> None:
    """Raises unless everything measured on held-out text is finite.

    Raises:
      NonFiniteError: names the step and the measurement.
    """
    for name, value in measured.items():
        if not np.isfinite(value):
            raise NonFiniteError(
                f"step {step}: {name} is {value}, though no gradient was; the last checkpoint is "
                "left as it was."
            )
