"""Run the matrix: over one layer, as data, or over many, as `grl check` does."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from grl import __version__
from grl.check.forms import CheckError, form_of, load_target
from grl.check.matrix import Cell, Form, check_form, transformations
from grl.check.peers import PACKAGES

__all__ = ["check_layer", "installed_backends", "select", "versions"]


def check_layer(layer: Any, *, backend: str, transformations: Iterable[str] | None = None) -> list[Cell]:
    """Look at a gradient reversal layer under every transformation of its framework.

    A cell is compared with the declared Jacobian: the identity forward; −λ for tangents and cotangents; λ² in second
    derivatives.

    Args:
        layer: a function of (x, coeff); a class that takes λ and nothing else, when it is made or when it is called
            (`nn.Module`, nnx, Linen or Equinox Module); a `torch.autograd.Function`; the name of one of these,
            "package.module:callable"; or a `grl.parity.Form`.
        backend: "torch" or "jax".
        transformations: names, or parts of names; all by default.

    Returns:
        A cell for each transformation, in the order of the table.

    Raises:
        CheckError: the layer or the transformation is none.
        ImportError: the framework is not installed.

    Example:
        >>> def forgetful(x, coeff):
        ...     return x
        >>> (cell,) = check_layer(forgetful, backend=installed_backends()[0], transformations=["eager"])
        >>> cell.status
        'WRONG'
    """
    if backend not in PACKAGES:
        raise CheckError(f"backend: got {backend!r}; expected torch or jax.")
    if isinstance(layer, str):
        layer = load_target(layer)
    form = layer if isinstance(layer, Form) else form_of(layer, backend)
    return list(check_form(form, select([backend], transformations)[backend]))


def select(backends: Sequence[str], parts: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Return, by backend, the names of the transformations that are asked for, in the order of the table.

    Args:
        backends: "torch", "jax" or both, which are then imported.
        parts: each a name, or else a part of names; None: all.

    Raises:
        CheckError: a part is in no name.
    """
    names = {backend: list(transformations(backend)) for backend in backends}
    if parts is None:
        return names
    wanted: set[str] = set()
    known = {name for listed in names.values() for name in listed}
    for part in parts:
        found = {part} if part in known else {name for name in known if part.casefold() in name.casefold()}
        if not found or not part.strip():
            raise CheckError(f"transformations: got {part!r}; expected (a part of) a name, such as {_shown(known)}.")
        wanted |= found
    return {backend: [name for name in listed if name in wanted] for backend, listed in names.items()}


def _shown(names: Iterable[str]) -> str:
    return ", ".join(sorted(names, key=len)[:5])


def installed_backends() -> tuple[str, ...]:
    """Return the frameworks that are installed, without importing one."""
    return tuple(backend for backend in PACKAGES if find_spec(backend) is not None)


def versions(backends: Iterable[str], peers: bool = False) -> dict[str, str]:
    """Return the versions of all that a table of these backends depends on, without importing it.

    Args:
        backends: "torch", "jax" or both.
        peers: the peers' packages too.
    """
    names = ["numpy"]
    for backend in backends:
        names += {"torch": ["torch", "onnx"], "jax": ["jax", "flax", "equinox"]}[backend]
        names += PACKAGES[backend] if peers else ()
    found = {"grl": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
