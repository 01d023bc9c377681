"""Names of JAX that the layers need and that JAX may change. No substitute for one gives a wrong gradient."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax

__all__ = ["is_jet_tracer", "is_of_jax", "user_context"]


class UserContext(Protocol):
    """A value for each thread that is a part of the key of JAX's caches."""

    @property
    def value(self) -> Any:
        """The value in this thread."""

    def __call__(self, value: Any) -> AbstractContextManager[Any]:
        """Return a context manager that sets the value for the time of its block."""


class _NoUserContext:
    def __init__(self, value: object) -> None:
        self.value = value

    def __call__(self, value: object) -> AbstractContextManager[Any]:
        raise NotImplementedError(
            f"jax.make_user_context: missing in JAX {jax.__version__}; without it a bypassed reversal would stay in"
            " JAX's caches."
        )


def user_context(default: object) -> UserContext:
    """Return a new user context. Call it while a module is imported: JAX allows no other time."""
    make = getattr(jax, "make_user_context", _NoUserContext)
    context: UserContext = make(default)
    return context


def is_jet_tracer(array: object) -> bool:
    """Return whether `jax.experimental.jet` traces an array. Its class is private, so it is known by its name."""
    return type(array).__name__ == "JetTracer"


def is_of_jax(function: object) -> bool:
    """Return whether a callable object is one of JAX's own, such as `jax.nn.relu`."""
    return callable(function) and type(function).__module__.split(".")[0] in ("jax", "jaxlib")
