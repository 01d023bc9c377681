"""The tables and pictures of a port: differences by depth beside rounding, and trainings that diverge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

from matplotlib.axes import Axes
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grl.pictures import COEFF, GREY, LABEL, SOURCE, TARGET, picture, title
from grl.port.findings import Findings, Row, TrainingFindings

__all__ = ["draw_parity", "draw_training", "print_report", "table", "training_table"]

_KINDS = {"activation": "activations", "gradient": "gradients", "update": "optimiser's step", "statistic": "statistics"}
_LONGEST = 40
"""The most names below a panel; of a deeper model only each second, third … is named."""


def print_report(table: Table, notes: Sequence[str], sentence: str) -> None:
    """Print a table, and below it the notes and the sentence, each on a line of its own."""
    console = Console(highlight=False)
    console.print(table)
    for line in notes:
        console.print(_as_sentence(line), markup=False)
    console.print(_as_sentence(sentence), markup=False, style="bold")


def _as_sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:].removesuffix('.')}."


def table(rows: Sequence[Row]) -> Table:
    """Return the table of a comparison: a row for each array, in sections by kind, the first divergence marked."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("largest difference of", overflow="fold")
    for column in ("absolute", "relative", "ULP", "rounding", "float64"):
        result.add_column(column, justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    first = next((row for row in rows if not row.agrees), None)
    for kind, heading in _KINDS.items():
        section = [row for row in rows if row.kind == kind]
        if section:
            result.add_row(Text(heading, style="bold"))
        for row in section:
            mark = Text("ok", "green") if row.agrees else Text("first" if row is first else "differs", "bold red")
            result.add_row(Text(f"  {_name(row)}"), *_numbers(row), mark)
        result.add_section()
    return result


def _name(row: Row) -> str:
    return row.where if row.key[1] <= 0 else f"{row.where}, call {row.key[1] + 1}"


def _numbers(row: Row) -> list[str]:
    numbers = (row.absolute, row.relative, row.ulp, row.rounding, row.real)
    return ["–" if math.isnan(n) else f"{n:.2g}" for n in numbers]  # inf: the shapes differ, or a number is not finite


def draw_parity(report: Findings, path: str | PathLike[str]) -> None:
    """Draw the relative differences in the order of the report, a panel for each kind.

    Args:
        report: what `compare` found.
        path: the PNG file, written whole or not at all.

    Raises:
        WriteError: the file cannot be written.
    """
    kinds = [kind for kind in _KINDS if any(row.kind == kind for row in report.rows)]
    counts = [sum(row.kind == kind for row in report.rows) for kind in kinds]
    longest = max((len(row.where) for row in report.rows), default=0)
    heading = (
        "The two models agree"
        if report.first_divergence is None
        else f"The two models diverge at {report.first_divergence.where}"
    )
    with picture(path, max(9.0, min(24.0, 4 + 0.3 * sum(counts))), 5.2 + 0.06 * min(longest, 40), heading) as figure:
        ratios = [max(count, 3) for count in counts]
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False, width_ratios=ratios)[0]
        for letter, kind, panel in zip("abcd", kinds, panels, strict=False):
            _draw_kind(panel, [row for row in report.rows if row.kind == kind])
            title(panel, letter, _KINDS[kind])
        panels[0].set_ylim(
            1e-18, 10 * max(line.get_ydata().max() for p in panels for line in p.lines if len(line.get_ydata()))
        )
        panels[0].set_ylabel("largest difference, relative to the largest number")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)


def _draw_kind(panel: Axes, rows: Sequence[Row]) -> None:
    x = range(len(rows))

    def relative(numbers: Sequence[float]) -> list[float]:
        return [max(_finite(n) / (row.scale or 1.0), 1e-18) for n, row in zip(numbers, rows, strict=True)]

    rounding = relative([row.rounding for row in rows])
    panel.fill_between(x, 1e-18, rounding, color=GREY, alpha=0.2, label="what float rounding explains", step="mid")
    panel.plot(x, rounding, color=GREY, drawstyle="steps-mid", linewidth=1)
    panel.plot(x, relative([row.absolute for row in rows]), "o-", color=SOURCE, label="as the models are", markersize=4)
    panel.plot(x, relative([row.real for row in rows]), "s--", color=LABEL, label="in float64", markersize=4)
    wrong = [i for i in x if not rows[i].agrees]
    values = relative([row.real for row in rows])
    panel.plot(wrong, [values[i] for i in wrong], "x", color=TARGET, markersize=9, mew=2, label="more than rounding")
    panel.set_yscale("log")
    step = -(-len(rows) // _LONGEST)
    panel.set_xticks(list(x)[::step], [_name(row) for row in rows][::step], rotation=90, fontsize=8, parse_math=False)


def _finite(number: float) -> float:
    return number if math.isfinite(number) else 1e3


def training_table(report: TrainingFindings) -> Table:
    """Return the table of two trainings: how far they are apart after steps 1, 2, 5, 10, 20, 50, …, and the last."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("after step", justify="right")
    for column in ("loss", "parameters", "rounding", "float64", "its rounding"):
        result.add_column(column, justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    shown = {1, report.steps, report.bug_step} | {d * 10**e for e in range(8) for d in (1, 2, 5)}
    losses, parameters = report.gaps["losses"], report.gaps["parameters"]
    for step in range(1, report.steps + 1):
        if step in shown:
            gaps = [losses.single, parameters.single, parameters.rounding, parameters.double, parameters.chaos]
            mark = (
                Text("bug", "bold red")
                if report.bug_step is not None and step >= report.bug_step
                else Text("ok", "green")
            )
            result.add_row(str(step), *(f"{gap[step - 1]:.2g}" for gap in gaps), mark)
    return result


def draw_training(report: TrainingFindings, path: str | PathLike[str]) -> None:
    """Draw how far two trainings are apart by step: losses, parameters, statistics, with the growth of rounding.

    Args:
        report: what `compare_training` found.
        path: the PNG file, written whole or not at all.

    Raises:
        WriteError: the file cannot be written.
    """
    series = {name: gaps for name, gaps in report.gaps.items() if any(gaps.double)}
    with picture(path, 4.6 * max(len(series), 1) + 1, 5.4, str(report.verdict).capitalize()) as figure:
        panels = figure.subplots(1, max(len(series), 1), squeeze=False)[0]
        steps = range(1, report.steps + 1)
        for letter, panel, (name, gaps) in zip("abc", panels, series.items(), strict=False):
            lines = (
                (gaps.single, SOURCE, "-", "PyTorch and JAX, as the models are"),
                (gaps.rounding, GREY, "-", "rounding: float32 and float64 of one framework"),
                (gaps.double, LABEL, "--", "PyTorch and JAX in float64"),
                (gaps.chaos, COEFF, ":", "rounding in float64: weights moved by an ULP"),
            )
            for values, colour, style, label in lines:
                panel.plot(steps, [max(_finite(v), 1e-18) for v in values], style, color=colour, label=label)
            if report.bug_step is not None:
                panel.axvline(report.bug_step, color=TARGET, linewidth=1, label="more than rounding from here on")
            panel.set(yscale="log", xlabel="step", ylabel="relative difference")
            title(panel, letter, name)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
