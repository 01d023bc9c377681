"""The pictures of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.form import MEASURES
from benchmarks.record import Row, find, summarise
from grl.files import replacing

__all__ = ["draw"]

_COLOURS = {"ours": "#0072B2", "peer": "#D55E00", "floor": "#6E6E6E"}
_FRAMEWORKS = {"torch": ("#D55E00", "o"), "jax": ("#0072B2", "s")}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write op.png (time against size), bars.png (by form) and scale.png; return the paths of the files written."""
    return [_save(folder / name, figure) for name, make in _PICTURES.items() if (figure := make(rows)) is not None]


def _save(path: Path, figure: Any) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _op(rows: Sequence[Row]) -> Any:
    """Time against size in float32, the floors dashed; one panel for each framework and measure."""
    of_op = find(rows, benchmark="op", dtype="float32", coeff="number")
    frameworks = list(dict.fromkeys(row.framework for row in of_op))
    if not frameworks:
        return None
    figure = _figure(13, 4 * len(frameworks))
    axes = figure.subplots(len(frameworks), 3, squeeze=False, sharex=True, sharey=True)
    for line, framework in zip(axes, frameworks, strict=True):
        chosen = find(of_op, framework=framework)
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
    return figure


def _bars(rows: Sequence[Row]) -> Any:
    """Forward and backward of 32 MiB by form, and the training steps."""
    large = find(rows, benchmark="op", bytes=2**25, dtype="float32", coeff="number", measure="both")
    panels = {f"{name}, 32 MiB, forward + backward": find(large, framework=name) for name in ("torch", "jax")}
    panels["one DANN training step"] = find(rows, benchmark="step")
    panels = {title: chosen for title, chosen in panels.items() if chosen}
    if not panels:
        return None
    figure = _figure(6 * len(panels), 4.8)
    for axis, (title, chosen) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        labels = [row.form if row.benchmark == "op" else f"{row.framework}: {row.form}" for row in chosen]
        of = [row.summary() for row in chosen]
        errors = [[(s.median - s.q1) / 1e6 for s in of], [(s.q3 - s.median) / 1e6 for s in of]]
        colours = [_COLOURS[row.kind] for row in chosen]
        axis.barh(labels, [s.median / 1e6 for s in of], xerr=errors, color=colours, error_kw={"lw": 1})
        axis.invert_yaxis()
        axis.set(title=title, xlabel="ms, median and quartiles")
        axis.spines[["top", "right"]].set_visible(False)
    names = {"ours": "this project", "peer": "others", "floor": "floor: identity, multiply, copy"}
    handles = [figure.axes[0].bar(0, 0, color=_COLOURS[kind]) for kind in names]
    figure.legend(handles, names.values(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _scale(rows: Sequence[Row]) -> Any:
    """Time against the size of x, and against the number of layers."""
    of_scale = find(rows, benchmark="scale")
    if not of_scale:
        return None
    figure = _figure(11, 4.4)
    by_size, by_layers = figure.subplots(1, 2)
    for framework in dict.fromkeys(row.framework for row in of_scale):
        of_framework = find(of_scale, framework=framework)
        models = [row for row in of_framework if row.form[0].isdigit()]
        for form in dict.fromkeys(row.form for row in of_framework if row not in models):
            _line(by_size, find(of_framework, form=form), lambda row: row.params["bytes"], form)
        for what in ("layers", "identities"):
            chosen = [row for row in models if row.form.endswith(what)]
            _line(by_layers, chosen, lambda row: int(row.form.split()[0]), what)
    by_size.set(xscale="log", yscale="log", xlabel="bytes", ylabel="µs, forward and backward", title="by size")
    by_layers.set(xlabel="layers in one model", title="by the number of layers, 256 bytes", ylim=(0, None))
    for axis in (by_size, by_layers):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def _line(axis: Any, rows: Sequence[Row], place: Callable[[Row], Any], label: str) -> None:
    points = sorted((place(row), summarise(row.samples).median / 1e3) for row in rows)
    if points:
        style = "--" if rows[0].kind == "floor" else "-"
        colour, marker = _FRAMEWORKS[rows[0].framework]
        look = {"linestyle": style, "color": colour, "marker": marker, "ms": 4}
        axis.plot(*zip(*points, strict=True), label=f"{rows[0].framework}: {label}", **look)


_PICTURES = {"op.png": _op, "bars.png": _bars, "scale.png": _scale}
