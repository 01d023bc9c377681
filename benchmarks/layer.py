"""`layer`: `GRL` beside the function that it calls, one right after the other, on a large tensor.

One per cent is less than what a machine changes within a round of all forms; in rounds of two it shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.form import Backend, TimedForm
from benchmarks.op import measure
from benchmarks.record import Row
from benchmarks.settings import Group, Settings, Tell

__all__ = ["run"]

_PAIRS = {"torch": ("gradient_reversal", "GRL"), "jax": ("custom_vjp, jit", "nnx GRL, jit")}


def run(found: Sequence[Backend], settings: Settings, tell: Tell) -> list[Row]:
    """Time the pair of each framework by itself."""
    rows: list[Row] = []
    for done, backend in enumerate(found):
        tell(done, len(found), backend.name)
        group = Group(settings.layer_size)
        rows += measure("layer", [backend], group, settings, _pair, measures=("both",), rounds=settings.layer_rounds)
    return rows


def _pair(backend: Backend) -> list[TimedForm]:
    return [form for form in backend.forms if form.name in _PAIRS[backend.name]]
