"""The frameworks whose forms can be measured here: `forms_torch` and `forms_jax`, as far as they are installed."""

from __future__ import annotations

from benchmarks.form import Backend
from benchmarks.record import explain

__all__ = ["backends"]


def backends(device: str) -> tuple[list[Backend], dict[str, str]]:
    """Return the frameworks that have this device, and why the others do not.

    Args:
        device: "cpu" or "cuda".
    """
    available: list[Backend] = []
    missing: dict[str, str] = {}
    for name in ("torch", "jax"):
        try:
            available.append(_backend(name, device))
        except (ImportError, RuntimeError, AssertionError) as error:
            missing[name] = explain(error)
    return available, missing


def _backend(name: str, device: str) -> Backend:
    if name == "torch":
        from benchmarks.forms_torch import TorchBackend

        return TorchBackend(device)
    from benchmarks.forms_jax import JaxBackend

    return JaxBackend(device)
