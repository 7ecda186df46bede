"""Prints the versions that a result depends on, on one line."""

import importlib.metadata
import platform

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "grain", "numpy")


def main() -> None:
    """Prints Python and the packages."""
    versions = (f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"Python {platform.python_version()}", *versions, sep=", ")


if __name__ == "__main__":
    main()
