"""Programs lowered for devices that are not there."""

import jax


def text_for(platform, subject, *arguments):
    """The program of `subject` for a platform; arguments are arrays, or their shapes and dtypes."""
    # Triton asks for a device of the kind that it lowers for.
    kind = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("one",), abstract_device=kind)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(subject).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()
