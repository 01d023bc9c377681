"""Values as JSON can hold them."""

from __future__ import annotations

import math

__all__ = ["valid"]


def valid(value: object) -> object:
    """Return dicts, lists and tuples, nested, with None in place of every float that is not finite.

    Args:
        value: what is to be written; its other values stay as they are.

    Example:
        >>> valid({"loss": math.nan, "steps": (1, 2)})
        {'loss': None, 'steps': [1, 2]}
    """
    if isinstance(value, dict):
        return {key: valid(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [valid(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
