"""The targets: ratios and counts of one run, each with its bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.record import Row, find, ratios, summarise

__all__ = ["Target", "targets"]

_SMALL, _LARGE = 2**8, 2**25
_FLOAT32: dict[str, Any] = {"dtype": "float32", "coeff": "number"}


@dataclass(frozen=True)
class Target:
    """One target.

    Args:
        name: what it is.
        values: as measured, one a round.
        bound: the largest median that is good enough.
    """

    name: str
    values: Sequence[float]
    bound: float

    @property
    def is_met(self) -> bool:
        """Return whether the median keeps the bound."""
        return summarise(self.values).median <= self.bound

    def __str__(self) -> str:
        of = summarise(self.values)
        spread = f" ({of.q1:.3f}–{of.q3:.3f})" if len(self.values) > 1 else ""
        missed = "" if self.is_met else ", missed"
        return f"{self.name}: {of.median:.4g}{spread}, aimed at: at most {self.bound:.4g}{missed}"

    def to_dict(self) -> dict[str, Any]:
        """Return its entry in results.json."""
        of = summarise(self.values)
        return {"name": self.name, "value": of.median, "q1": of.q1, "q3": of.q3, "bound": self.bound}


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return the targets that the rows can decide. A benchmark that was not run has none."""
    found = [*_small(rows), *_large(rows), *_steps(rows), *_counts(rows)]
    return [target for target in found if target.values]


def _ratio(
    rows: Sequence[Row], form: str, other: str, measure: str, other_measure: str = "", **where: Any
) -> list[float]:
    mine = find(rows, form=form, measure=measure, **where)
    theirs = find(rows, form=other, measure=other_measure or measure, **where)
    # On a GPU a form has a row for each clock: the device's own where it has one.
    for clock in ("device", "launch", "host"):
        one, two = find(mine, clock=clock), find(theirs, clock=clock)
        if one and two:
            return ratios(one[0], two[0])
    return ratios(mine[0], theirs[0]) if mine and theirs else []


def _small(rows: Sequence[Row]) -> Iterator[Target]:
    where: dict[str, Any] = {"benchmark": "op", "framework": "torch", "bytes": _SMALL, **_FLOAT32}
    ours = "gradient_reversal"
    for form, other, measure, bound in (
        (ours, "bare apply", "forward", 1.25),
        (ours, "article Function", "forward", 0.8),
        ("GRL", "article Module", "forward", 0.85),
        (ours, "bare apply", "backward", 1.1),
    ):
        yield Target(
            f"PyTorch, 64 elements, {measure}: {form} / {other}", _ratio(rows, form, other, measure, **where), bound
        )
    for peer in dict.fromkeys(row.form for row in find(rows, kind="peer", measure="forward", **where)):
        if peer == "article Function":
            continue  # listed above with a stricter bound
        yield Target(
            f"PyTorch, 64 elements, forward: {ours} / {peer}", _ratio(rows, ours, peer, "forward", **where), 1.0
        )
    yield from _layer_calls(rows, **where)


def _layer_calls(rows: Sequence[Row], **where: Any) -> Iterator[Target]:
    """Return a layer's cost relative to its function, next to an empty module and a module around a bare rule."""
    forms = ("GRL", "gradient_reversal", "bare nn.Module", "bare apply in an nn.Module", "bare apply")
    found = [find(rows, form=form, measure="forward", **where) for form in forms]
    if not all(found):
        return
    layer, function, module, around, rule = (np.array(rows[0].samples) for rows in found)
    name = "PyTorch, 64 elements, forward: (GRL − gradient_reversal)"
    yield Target(f"{name} / a bare nn.Module's call", ((layer - function) / module).tolist(), 1.0)
    yield Target(
        f"{name} / (bare apply in an nn.Module − bare apply)", ((layer - function) / (around - rule)).tolist(), 1.0
    )


def _large(rows: Sequence[Row]) -> Iterator[Target]:
    where: dict[str, Any] = {"benchmark": "op", "framework": "torch", "bytes": _LARGE, **_FLOAT32}
    ours, at = "gradient_reversal", "PyTorch, 32 MiB"
    yield Target(
        f"{at}, both: {ours} / article Function", _ratio(rows, ours, "article Function", "both", **where), 1 / 1.7
    )
    pair = where | {"benchmark": "layer"}
    yield Target(f"{at}, both: GRL / {ours}", _ratio(rows, "GRL", ours, "both", **pair), 1.01)
    if find(rows, clock="device", **where):
        yield Target(f"{at}, backward: {ours} / copy", _ratio(rows, ours, "copy", "backward", **where), 1 / 0.9)
    else:
        yield Target(
            f"{at}, backward: {ours} / multiply", _ratio(rows, ours, "multiply", "backward", **where), 1 / 0.95
        )
    forward = {"benchmark": "op", "framework": "torch", "form": ours, "measure": "forward", **_FLOAT32}
    small, large = (find(rows, bytes=size, **forward) for size in (_SMALL, _LARGE))
    if small and large:
        value = large[0].summary().median / small[0].summary().median
        yield Target(f"PyTorch, forward: {ours} of 32 MiB / of 256 bytes", [value], 1.25)


def _steps(rows: Sequence[Row]) -> Iterator[Target]:
    bounds = {"eager": 1.02, "compiled": 1.01, "jit": 1.01, "scan": 1.01}
    for row in find(rows, benchmark="step", kind="ours"):
        mode = row.form.split(", ")[1]
        name = f"{row.framework}, {mode}, a DANN step on {row.params['network']}: with the layer / with an identity"
        yield Target(name, row.ratio, bounds[mode])
    for network in dict.fromkeys(row.params["network"] for row in find(rows, benchmark="step")):
        where = {"benchmark": "step", "network": network}
        jax, torch = (find(rows, form=f"gradient_reversal, {mode}", **where) for mode in ("scan", "eager"))
        if jax and torch:
            yield Target(f"a DANN step on {network}: JAX, scan / PyTorch, eager", ratios(jax[0], torch[0]), 1.5)


def _counts(rows: Sequence[Row]) -> Iterator[Target]:
    for framework in ("torch", "jax"):
        for measure, bound in (
            ("programs", 2 if framework == "torch" else 1),
            ("added forward", 0),
            ("added backward", 1),
        ):
            if measure == "added backward" and framework == "torch":
                bound = 0  # the multiply is fused into an existing kernel
            of = find(rows, benchmark="compile", framework=framework, kind="ours", measure=measure)
            what = "programs over 1,000 values of λ" if measure == "programs" else f"instructions {measure}"
            yield Target(f"{framework}, {what}, the most of our forms", _most(of), bound)
        kept = find(rows, benchmark="memory", framework=framework, kind="ours", measure="retained")
        yield Target(
            f"{framework}, bytes retained, the most of our forms", _most(kept), 0 if framework == "torch" else 4
        )


def _most(rows: Sequence[Row]) -> list[float]:
    return [max(row.samples[0] for row in rows)] if rows else []
