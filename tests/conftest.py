"""One place for the strictness every test runs under."""

import os

import jaxlib.version

# Eight devices stand in for a mesh. Tests compile much and run little: half of the time of a
# run from an empty cache is LLVM's, which level 0 saves, and half of the rest that of XLA's newer
# emitters of fused kernels, five times slower than those that jaxlib has until 0.10.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if jaxlib.version.__version_info__ < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# chex.variants runs one hypothesis test from two executors (eager and jitted).
CHECKS = [hypothesis.HealthCheck.differing_executors, hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    print_blob=True,
    suppress_health_check=CHECKS,
)
hypothesis.settings.register_profile(
    "few",  # of `make check`, and of other Pythons, whose differences show in any example
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=3,
    suppress_health_check=CHECKS,
)
hypothesis.settings.register_profile(
    "nightly", deadline=None, max_examples=1000, suppress_health_check=CHECKS
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items):
    """Files with deep tests first: `--dist loadfile` then ends with small ones on both workers."""
    deep = {item.path for item in items if item.get_closest_marker("deep")}
    items.sort(key=lambda item: item.path not in deep)  # stable
