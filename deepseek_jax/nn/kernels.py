"""Which kernel a layer takes: what its setting may be on a device, told once. Floor 3."""

import functools
import logging
from collections.abc import Sequence

import jax

_LOG = logging.getLogger(__name__)


def check(setting: str, asked: str, able: Sequence[str], device: jax.Device) -> None:
    """Raises unless a setting is "auto" or names what the device can run.

    Args:
      setting: name of the setting.
      asked: its value.
      able: what the device can run.
      device: that runs the layer.

    Raises:
      ValueError: names the setting, its value, what is allowed, and the device.
    """
    if asked not in ("auto", *able):
        allowed = " or ".join(map(repr, ("auto", *able)))
        raise ValueError(f"{setting}={asked!r}: must be {allowed} on {device.device_kind}")


@functools.cache
def tell(setting: str, kernel: str, what: str, device_kind: str) -> None:
    """Logs once which kernel "auto" means, for what and on which device."""
    _LOG.info("%s='auto': %s for %s on %s", setting, kernel, what, device_kind)
