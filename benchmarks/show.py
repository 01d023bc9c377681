"""A run for the eye: a table, and a picture of time against size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.forms import MEASURES
from benchmarks.record import Row, find, summarise

__all__ = ["draw", "tables"]

_COLOURS = {"ours": "#0072B2", "peer": "#D55E00", "floor": "#6E6E6E"}


def tables(rows: Sequence[Row]) -> Iterator[Table | str]:
    """Yield a table for each framework, size, dtype and kind of λ, each followed by what failed."""
    for group, members in _groups(rows).items():
        table = Table(title=group, caption="µs a call ± half the quartiles' distance; × the floor", box=box.SIMPLE_HEAD)
        table.add_column("form", overflow="fold")
        for measure in MEASURES:
            table.add_column(measure, justify="right", no_wrap=True)
            table.add_column("×", justify="right", no_wrap=True)
        for name in dict.fromkeys(row.form for row in members if row.samples):
            by_measure = {row.measure: row for row in members if row.form == name and row.samples}
            table.add_row(name, *(cell for measure in MEASURES for cell in _cells(by_measure.get(measure))))
        yield table
        failures = dict.fromkeys(f"{row.form} failed: {row.failure}" for row in members if row.failure)
        yield from failures


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw time against size in float32, the floors dashed; one panel for each framework and measure."""
    from matplotlib.figure import Figure

    from grl.checkpoint import replacing

    frameworks = list(dict.fromkeys(row.framework for row in find(rows, benchmark="op")))
    figure = Figure(figsize=(13, 4 * max(1, len(frameworks))), layout="constrained")
    axes = figure.subplots(max(1, len(frameworks)), 3, squeeze=False, sharex=True, sharey=True)
    for line, framework in zip(axes, frameworks, strict=False):
        chosen = find(rows, benchmark="op", framework=framework, dtype="float32", coeff="number")
        markers = dict(zip(dict.fromkeys(row.form for row in chosen), cycle("osv^D<>pP*Xh"), strict=False))
        handles = {}
        for axis, measure in zip(line, MEASURES, strict=True):
            for name, marker in markers.items():
                of_form = sorted(find(chosen, form=name, measure=measure), key=lambda row: row.params["bytes"])
                if not of_form:
                    continue
                kind = of_form[0].kind
                points = [(row.params["bytes"], row.summary().median / 1e3) for row in of_form]
                look = {"color": _COLOURS[kind], "marker": marker, "ms": 4, "lw": 1, "alpha": 0.8}
                (handles[name],) = axis.plot(*zip(*points, strict=True), "--" if kind == "floor" else "-", **look)
            axis.set(xscale="log", yscale="log", title=f"{framework}, {measure}", xlabel="bytes")
            axis.grid(alpha=0.3)
        line[0].set_ylabel("µs a call")
        line[-1].legend(handles.values(), handles, fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        params = row.params
        size = f", {_size(params['bytes'])} of {params['dtype']}, λ a {params['coeff']}" if params else ""
        groups.setdefault(f"{row.framework}{size}", []).append(row)
    return groups


def _cells(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    found = row.summary()
    spread = (found.q3 - found.q1) / 2 / found.median
    ratio = f"{summarise(row.ratio).median:.2f}" if row.ratio else "–"
    return f"{found.median / 1e3:.4g} ±{spread:.0%}", ratio


def _size(size: Any) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} bytes"
