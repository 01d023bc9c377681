"""Bypass the reversals of one context, for a diagnosis: gradients get another factor than −λ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from grl.bypass import Bypass
from grl.jax_impl._internals import user_context

__all__ = ["bypassed", "current_bypass"]

# A part of the key of JAX's caches: a function that is compiled outside of the bypass is traced anew inside, and what
# is compiled inside is never used outside. Every bypass is a key of its own.
_current = user_context(None)


@contextmanager
def bypassed(factor: float) -> Iterator[Bypass]:
    """Give every reversal that is called in this context the factor in place of −λ, for the time of the block.

    It holds for the calls of this thread and of no other. Functions that are compiled already are traced anew in the
    block; other threads, and this one after the block, keep using the programs without the bypass.

    Args:
        factor: 1 passes gradients on unchanged; 0 blocks them.

    Returns:
        The bypass, which counts the derivatives that are traced through it.

    Raises:
        NotImplementedError: this JAX has no `jax.make_user_context`.
    """
    bypass = Bypass(factor)
    with _current(bypass):
        yield bypass


def current_bypass() -> Bypass | None:
    """Return the bypass of this context, if there is one."""
    bypass: Bypass | None = _current.value
    return bypass
