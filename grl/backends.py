"""The two backends: their names, and which of them are installed. Imports neither."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["BACKENDS", "FRAMEWORKS", "installed_backends"]

BACKENDS = ("torch", "jax")

FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX"}
"""The name of each backend's framework in text."""

_LAYERS = {"torch": ("torch",), "jax": ("jax",)}
_TRAINING = {"torch": ("torch",), "jax": ("jax", "flax", "optax")}


def installed_backends(*, training: bool = False) -> tuple[str, ...]:
    """Return the backends that are installed, without importing one.

    Args:
        training: whether to ask for all packages that `grl train` needs, or only for those of the layers' functions.

    Returns:
        "torch", "jax", both, or none.
    """
    packages = _TRAINING if training else _LAYERS
    return tuple(name for name in BACKENDS if all(find_spec(package) is not None for package in packages[name]))
