"""Run the matrix: for one layer, as data, or for many, as `grl check` does."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib import metadata

from grl import __version__
from grl.backends import BACKENDS
from grl.check.form import Cell, Form
from grl.check.forms import CheckError, form_of, load_target
from grl.check.matrix import check_form, transformations
from grl.check.peers import PACKAGES

__all__ = ["check_layer", "select", "versions"]


def check_layer(layer: object, *, backend: str, transformations: Iterable[str] | None = None) -> list[Cell]:
    """Run a gradient reversal layer under every transformation of its framework.

    Each cell compares the layer with the declared Jacobian: the identity forward, −λ for tangents and cotangents, λ² in
    second derivatives.

    Args:
        layer: a function of (x, coeff); a class that takes λ and nothing else, when it is made or when it is called
            (`nn.Module`, nnx, Linen or Equinox Module); a `torch.autograd.Function`; the name of one of these,
            "package.module:callable"; or a `grl.parity.Form`.
        backend: "torch" or "jax".
        transformations: names, or parts of names; all by default.

    Returns:
        A cell for each transformation, in the order of the table.

    Raises:
        CheckError: the layer cannot be checked, or there is no such transformation.
        ImportError: the framework is not installed.

    Example:
        >>> def forgetful(x, coeff):
        ...     return x
        >>> from grl.backends import installed_backends
        >>> (cell,) = check_layer(forgetful, backend=installed_backends()[0], transformations=["eager"])
        >>> cell.status
        'WRONG'
    """
    if backend not in BACKENDS:
        raise CheckError(f"backend: got {backend!r}; expected torch or jax.")
    if isinstance(layer, str):
        layer = load_target(layer)
    form = layer if isinstance(layer, Form) else form_of(layer, backend)
    return list(check_form(form, select([backend], transformations)[backend]))


def select(backends: Sequence[str], parts: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Return the names of the chosen transformations by backend, in the order of the table.

    Args:
        backends: "torch", "jax" or both, which are then imported.
        parts: each a name, or a part of names; None chooses all.

    Raises:
        CheckError: no name contains one of the parts.
    """
    names = {backend: list(transformations(backend)) for backend in backends}
    if parts is None:
        return names
    wanted: set[str] = set()
    known = {name for listed in names.values() for name in listed}
    for part in parts:
        matching = {part} if part in known else {name for name in known if part.casefold() in name.casefold()}
        if not matching or not part.strip():
            raise CheckError(f"transformations: got {part!r}; expected (a part of) a name, such as {_shown(known)}.")
        wanted |= matching
    return {backend: [name for name in listed if name in wanted] for backend, listed in names.items()}


def _shown(names: Iterable[str]) -> str:
    return ", ".join(sorted(names, key=len)[:5])


def versions(backends: Iterable[str], peers: bool = False) -> dict[str, str]:
    """Return the versions of the packages that a table of these backends depends on, without importing them.

    Args:
        backends: "torch", "jax" or both.
        peers: whether to include the packages of other libraries' layers.
    """
    names = ["numpy"]
    for backend in backends:
        names += {"torch": ["torch", "onnx"], "jax": ["jax", "flax", "equinox"]}[backend]
        names += PACKAGES[backend] if peers else ()
    installed = {"grl": __version__, "python": platform.python_version()}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
