"""Packaging only: name, versions, extras. Tool settings are in pyproject.toml.

Lower bounds are what was tested on Python 3.11, not known minima; upper bounds stand where a
next minor version has changed interfaces before.
"""

import setuptools

TESTS = [
    "hypothesis>=6.170",
    "pytest>=9.0",
    "pytest-xdist>=3.8",
]

NOTEBOOKS = [
    "ipykernel>=7.0",
    "nbclient>=0.10",
    "nbformat>=5.10",
]

setuptools.setup(
    name="deepseek_jax",
    version="0.1.0",
    description="R1 and R1-Zero in JAX: sparse mixture of experts, local-global attention, RL.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["deepseek_jax", "deepseek_jax.*"]),
    install_requires=[
        "absl-py>=2.5",
        "chex>=0.1.92",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18",
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.3.11",
        "matplotlib>=3.11",
        "ml_collections>=1.1.0",
        "numpy>=2.4",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "rich>=15.0",
        "tensorboardX>=2.6.5",
        "tokenizers>=0.23.3",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "notebooks": [*NOTEBOOKS, "jupyterlab>=4.4"],
        "tests": TESTS,
        "dev": [*TESTS, *NOTEBOOKS, "mypy>=2.4", "ruff>=0.17.6,<0.18"],
    },
)
