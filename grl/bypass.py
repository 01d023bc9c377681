"""What the diagnosis puts in the place of −λ: a factor for all reversals of one context, and a count of their use."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Bypass"]


@dataclass(eq=False)
class Bypass:
    """A reversal that is bypassed.

    Args:
        factor: the gradient's factor in place of −λ: 1 passes it on unchanged, 0 blocks it.
        runs: how many derivatives have been taken through a bypassed reversal.
    """

    factor: float
    runs: int = 0
