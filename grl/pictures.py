"""The look of all pictures: colours that the colour-blind can tell apart, sizes, and how a figure is written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import PurePath
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grl.files import WriteError, replacing

__all__ = [
    "CLASSES",
    "COEFF",
    "GREY",
    "LABEL",
    "METHOD_TITLES",
    "SOURCE",
    "TARGET",
    "picture",
    "short_name",
    "title",
]

# Okabe and Ito's colours, for two or three things that also differ in marker or line style.
SOURCE, TARGET, LABEL, COEFF, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6E6E6E"
# Petroff's ten colours (arXiv:2107.02270), for classes.
CLASSES = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
METHOD_TITLES = {"source-only": "source only", "dann": "DANN", "target": "target"}

_RC: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
}


@contextmanager
def picture(path: str | PathLike[str], width: float, height: float, heading: str) -> Iterator[Figure]:
    """Yield a figure of width × height inches; write it as PNG, whole or not at all, when the block ends.

    The heading is drawn literally: a `$` does not start a formula.

    Raises:
        WriteError: the file cannot be written.
    """
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        # A path may contain dollar signs, and bytes that cannot be decoded.
        heading = heading.encode(errors="replace").decode()
        figure.suptitle(heading, fontsize=14, fontweight="bold", x=0.01, ha="left", parse_math=False)
        yield figure
        try:
            with replacing(path) as temporary, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph")  # a glyph that the font lacks is drawn as a box
                figure.savefig(temporary, format="png", dpi=130, facecolor="white")
        except OSError as error:
            raise WriteError(f"{path}: cannot be written: {error.strerror}.") from error


def title(panel: Axes, letter: str, text: str) -> None:
    """Set the title of a panel: a bold letter and a text."""
    panel.set_title(rf"$\bf{{{letter}}}$  {text}")


def short_name(task: str) -> str:
    """Return the name of a task; of a file without its folders."""
    return PurePath(task).name
