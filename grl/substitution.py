"""Replace an attribute or a global function for the time of a block, where possible for the calling context alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from types import ModuleType
from typing import Any

__all__ = ["Local", "homes", "local_calls", "replaced", "taking_turns"]

Local = Callable[[Callable[..., Any], Callable[..., Any]], Callable[..., Any]]
"""A function of (replacement, original) to a function that calls the former in one context, the latter in others."""

_turn = RLock()
_contexts: ContextVar[tuple[object, ...]] = ContextVar("grl.substitution", default=())


@contextmanager
def taking_turns() -> Iterator[None]:
    """Let one thread at a time replace what belongs to the whole process; a thread may take its turn twice.

    Without it two threads could each keep the other's replacement as the usual value, and put it back for ever.
    """
    with _turn:
        yield


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a module, a class or an object for the time of the block, whatever happens in it.

    The attribute is replaced for all threads. One thread at a time may replace anything; a second one waits.

    Args:
        owner: holds the attribute.
        name: its name.
        value: takes its place. See `local_calls` for a function that other threads do not notice.
    """
    with taking_turns():
        is_its_own = name in vars(owner)  # not inherited from a class
        old = vars(owner).get(name)
        setattr(owner, name, value)
        try:
            yield
        finally:
            if is_its_own:
                setattr(owner, name, old)
            else:
                delattr(owner, name)


@contextmanager
def local_calls() -> Iterator[Local]:
    """Yield a function that makes a replacement local: the other threads' calls reach the original.

    Example:
        >>> with local_calls() as local:
        ...     double = local(lambda x: 2 * x, lambda x: x)
        ...     double(3)
        6
        >>> double(3)
        3
    """
    context = object()

    def local(replacement: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            return (replacement if context in _contexts.get() else original)(*arguments, **named)

        return call

    token = _contexts.set((*_contexts.get(), context))
    try:
        yield local
    finally:
        _contexts.reset(token)


def homes(function: object) -> list[tuple[ModuleType, str]]:
    """Return the imported modules in which a function is a global, each with its name there.

    Raises:
        ValueError: it is a global of no module.
    """
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    places = [(module, name) for module in modules for name, value in list(vars(module).items()) if value is function]
    if not places:
        raise ValueError(
            f"layer: got {function!r}; expected a submodule of the model, its name, its class, or a global function."
        )
    return places
