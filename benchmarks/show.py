"""The tables of a run. The pictures are in `draw`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from benchmarks import article
from benchmarks.form import MEASURES
from benchmarks.record import Row, summarise
from benchmarks.scale import layer_cost, slopes

__all__ = ["size_of", "tables"]


def tables(rows: Sequence[Row]) -> Iterator[Table | str]:
    """Yield the tables of a run, each followed by its failures."""
    for name in dict.fromkeys(row.benchmark for row in rows):
        of = [row for row in rows if row.benchmark == name]
        yield from {"op": _op, "article": _article, "scale": _scale}.get(name, _plain)(of)
        yield from dict.fromkeys(f"{row.form} ({row.framework}) failed: {row.failure}" for row in of if row.failure)


def _op(rows: Sequence[Row]) -> Iterator[Table]:
    for group, members in _grouped(rows, _group_of).items():
        table = Table(title=group, caption="µs a call ± half the quartiles' distance; × the floor", box=box.SIMPLE_HEAD)
        table.add_column("form", overflow="fold")
        for measure in MEASURES:
            table.add_column(measure, justify="right", no_wrap=True)
            table.add_column("×", justify="right", no_wrap=True)
        for name in dict.fromkeys(row.form for row in members if row.samples):
            by_measure = {row.measure: row for row in members if row.form == name and row.samples}
            table.add_row(name, *(cell for measure in MEASURES for cell in _cells(by_measure.get(measure))))
        yield table


def _article(rows: Sequence[Row]) -> Iterator[Table]:
    yield article.table(rows)


def _plain(rows: Sequence[Row]) -> Iterator[Table]:
    for group, members in _grouped(rows, lambda row: f"{row.benchmark}: {row.framework}").items():
        measures = dict.fromkeys(row.measure for row in members)
        yield _pivot(group, members, lambda row: row.form, lambda row: row.measure, list(measures))


def _scale(rows: Sequence[Row]) -> Iterator[Table | str]:
    done = [row for row in rows if row.samples]
    sizes = [row for row in done if not _layers(row)]
    columns = [size_of(size) for size in dict.fromkeys(row.params["bytes"] for row in sizes)]
    for framework, members in _grouped(sizes, lambda row: row.framework).items():
        yield _pivot(
            f"scale: {framework}, forward and backward, by size", members, _form_and_clock, _size_column, columns
        )
        form = members[0].form
        low, high = slopes(members, framework, form)
        growth = f"as bytes^{low:.2f} in the smaller half, as bytes^{high:.2f} in the larger"
        yield f"{framework}: the time of {form} grows {growth}."
    for framework, members in _grouped([row for row in done if _layers(row)], lambda row: row.framework).items():
        title = f"scale: {framework}, forward and backward, by the number of layers"
        numbers = list(dict.fromkeys(map(_layers, members)))
        yield _pivot(title, members, lambda row: row.form.split()[1], _layers, numbers)
        yield f"{framework}: each further layer adds {layer_cost(members, framework) / 1e3:.3g} µs."


def _pivot(
    title: str,
    rows: Sequence[Row],
    line: Callable[[Row], str],
    column: Callable[[Row], str],
    columns: Sequence[str],
) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, members in _grouped([row for row in rows if row.samples], line).items():
        by_column = {column(row): row for row in members}
        table.add_row(name, *(_figure(by_column.get(name)) for name in columns))
    return table


def _figure(row: Row | None) -> str:
    if row is None:
        return ""
    median = row.summary().median
    if row.unit == "ns":
        return f"{median / 1e6:.3g} ms" if median >= 1e6 else f"{median / 1e3:.3g} µs"
    return f"{median:.2f} s" if row.unit == "s" else f"{median:,.0f}"


def _grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _group_of(row: Row) -> str:
    params = row.params
    size = f", {size_of(params['bytes'])} of {params['dtype']}, λ a {params['coeff']}" if params else ""
    return f"op: {row.framework}{size}"


def _form_and_clock(row: Row) -> str:
    clock = row.params["clock"]
    return row.form if clock == "host" else f"{row.form} ({clock})"


def _size_column(row: Row) -> str:
    return size_of(row.params["bytes"])


def _layers(row: Row) -> str:
    """Return the number of layers in the model, or nothing if the size of x varies instead."""
    number = row.form.split()[0]
    return number if number.isdigit() else ""


def _cells(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    found = row.summary()
    spread = (found.q3 - found.q1) / 2 / found.median
    ratio = f"{summarise(row.ratio).median:.2f}" if row.ratio else "–"
    return f"{found.median / 1e3:.4g} ±{spread:.0%}", ratio


def size_of(size: Any) -> str:
    """Return a number of bytes in the largest unit that it fills."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} bytes"
