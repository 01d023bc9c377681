"""Bypass the reversals of one context, for a diagnosis: gradients get another factor than −λ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from grl.bypass import Bypass

__all__ = ["active", "bypassed", "current_bypass"]

active: list[Bypass] = []
"""The bypasses of all contexts. While the list is empty, no call needs to read its context."""

_current: ContextVar[Bypass | None] = ContextVar("grl.torch_impl.bypass", default=None)


@contextmanager
def bypassed(factor: float) -> Iterator[Bypass]:
    """Give every reversal that is called in this context the factor in place of −λ, for the time of the block.

    It holds for the calls of this `contextvars` context (of this thread, as a rule) and of no other. The gradients of
    these calls keep the factor wherever and whenever they are computed. A program that `torch.compile` has compiled
    before keeps its −λ, and one that it compiles in the block keeps the factor: run compiled functions eagerly here.

    Args:
        factor: 1 passes gradients on unchanged; 0 blocks them.

    Returns:
        The bypass, which counts the derivatives that are taken through it.
    """
    bypass = Bypass(factor)
    active.append(bypass)
    token = _current.set(bypass)
    try:
        yield bypass
    finally:
        _current.reset(token)
        active.remove(bypass)


def current_bypass() -> Bypass | None:
    """Return the bypass of this context, if there is one."""
    return _current.get() if active else None
