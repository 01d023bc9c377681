"""check.png: which layer is right under which transformation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from grl.backends import FRAMEWORKS
from grl.check.form import STATUSES, Cell
from grl.check.matrix import counts
from grl.pictures import GREY, TARGET, picture

__all__ = ["draw_matrix"]

_ROW, _COLUMN, _NAMES = 0.19, 0.34, 2.6  # inches: a cell's height and width, and the transformations' names
_TOP, _BOTTOM = 2.3, 0.75  # inches: the heading and the forms' names; the legend and the versions
# Face colour and sign: the statuses differ in sign and in lightness, not only in colour.
_LOOKS = {"ok": ("#C5E5DA", ""), "refuses": ("#F3D58A", "!"), "n/a": ("#EFEFEF", "·"), "WRONG": (TARGET, "✗")}
_MEANING = {
    "ok": "ok: the declared Jacobian −λ·I",
    "refuses": "!  refuses: an exception is raised",
    "n/a": "·  n/a: the question does not arise",
    "WRONG": "✗  WRONG: the result differs, no exception",
}


def draw_matrix(cells: Sequence[Cell], versions: Mapping[str, str], path: str | PathLike[str]) -> None:
    """Draw a table for each backend: transformations down, forms across, how many of each status below.

    Args:
        cells: the result of `grl check`.
        versions: name -> version, for the line below.
        path: the PNG file, written whole or not at all.

    Raises:
        WriteError: the file cannot be written.
    """
    by_backend = {name: [cell for cell in cells if cell.backend == name] for name in FRAMEWORKS}
    tables = {name: found for name, found in by_backend.items() if found}
    rows = max((len({cell.transformation for cell in found}) for found in tables.values()), default=0)
    widths = {name: _NAMES + _COLUMN * len({cell.form for cell in found}) for name, found in tables.items()}
    width, height = max(sum(widths.values()) + 0.9, 9.5), _TOP + _ROW * (rows + 1 + len(STATUSES)) + _BOTTOM
    with picture(path, width, height, "Gradient reversal layers under every transformation") as figure:
        figure.set_layout_engine("none")  # all positions are computed here
        left = 0.0
        for name, found in tables.items():
            panel = _panel(figure, left + _NAMES, found)
            _draw_cells(panel, found)
            _draw_totals(panel, found)
            figure.text(
                (left + 0.15) / width, 1 - (_TOP - 0.2) / height, FRAMEWORKS[name], fontsize=12, fontweight="bold"
            )
            left += widths[name]
        figure.legend(
            handles=[Patch(facecolor=_LOOKS[status][0], label=_MEANING[status]) for status in STATUSES],
            loc="lower left",
            bbox_to_anchor=(0.0, 0.3 / height),
            ncols=len(STATUSES),
            columnspacing=1.2,
            fontsize=9,
        )
        line = ", ".join(f"{name} {version}" for name, version in versions.items())
        figure.text(0.15 / width, 0.15 / height, line, fontsize=7.5, color=GREY)


def _panel(figure: Figure, left: float, cells: Sequence[Cell]) -> Axes:
    """Return axes on which a unit is a cell. They are placed in inches: cells have the same size in all tables."""
    forms, names = _lists(cells)
    width, height = figure.get_size_inches()
    inches = _COLUMN * len(forms), _ROW * (len(names) + 1 + len(STATUSES))
    panel = figure.add_axes(
        (left / width, (height - _TOP - inches[1]) / height, inches[0] / width, inches[1] / height),
        xlim=(-0.5, len(forms) - 0.5),
        ylim=(len(names) + len(STATUSES) + 0.5, -0.5),
    )
    panel.spines[:].set_visible(False)
    panel.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    panel.set_xticks(
        range(len(forms)),
        forms,
        fontsize=9,
        rotation=60,
        ha="left",
        va="center",
        rotation_mode="anchor",
        parse_math=False,
    )
    return panel


def _draw_cells(panel: Axes, cells: Sequence[Cell]) -> None:
    forms, names = _lists(cells)
    for cell in cells:
        face, sign = _LOOKS[cell.status]
        x, y = forms.index(cell.form), names.index(cell.transformation)
        panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=0.8))
        panel.text(x, y, sign, ha="center", va="center", fontsize=9, fontweight="bold")


def _draw_totals(panel: Axes, cells: Sequence[Cell]) -> None:
    forms, names = _lists(cells)
    totals = counts(cells)
    rows = [len(names) + 0.8 + offset for offset in range(len(STATUSES))]
    for row, status in zip(rows, STATUSES, strict=True):
        for x, form in enumerate(forms):
            number = totals[f"{cells[0].backend} {form}"][status]
            panel.text(x, row, str(number), ha="center", va="center", fontsize=8.5)
    panel.set_yticks([*range(len(names)), *rows], [*names, *STATUSES], fontsize=9)


def _lists(cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(c.form for c in cells)), list(dict.fromkeys(c.transformation for c in cells))
