"""Put something else in the place of an attribute or of a global function, for the time of a block."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["homes", "replaced", "taking_turns"]

_TURN = threading.RLock()


@contextmanager
def taking_turns() -> Iterator[None]:
    """Let one thread at a time replace what belongs to the whole process; a thread may take its turn twice.

    Without it two threads could each keep the other's replacement as the usual value, and put it back for ever.
    """
    with _TURN:
        yield


def homes(function: Any) -> list[tuple[Any, str]]:
    """Return where, among all that is imported, a function is a global: the modules with its names there."""
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    found = [(module, name) for module in modules for name, value in list(vars(module).items()) if value is function]
    if not found:
        raise ValueError(
            f"layer: got {function!r}; expected a submodule of the model, its name, its class, or a global function."
        )
    return found


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put a value in the place of an attribute (of a module, a class or an object) for the time of the block."""
    there = name in vars(owner)
    old = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if there:
            setattr(owner, name, old)
        else:
            delattr(owner, name)
