"""report.png: the result of one run."""

from __future__ import annotations

from math import log
from os import PathLike
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

from grl.backends import FRAMEWORKS
from grl.experiment import Result, Snapshot
from grl.pictures import COEFF, GREY, LABEL, METHOD_TITLES, TARGET, picture, short_name, title
from grl.report.features import Embedding, draw_classes, draw_decision, draw_domains, embed

__all__ = ["draw_report"]

History: TypeAlias = list[dict[str, Any]]
"""The records of a run, one a step."""


def draw_report(result: Result, path: str | PathLike[str], baseline: Result | None = None) -> None:
    """Draw the model before and after training, and the curves.

    For points in the plane with two classes, the panels are the decision and the representation, as in figure 2 of
    Ganin et al. 2016. Otherwise they are the features of both domains in two dimensions, by domain and by class.

    Args:
        result: a finished run.
        path: the PNG file, written whole or not at all.
        baseline: a run without adaptation, for comparison. It is drawn for points in the plane only.

    Raises:
        WriteError: the file cannot be written.
    """
    planar = result.after.boundary is not None
    rows = 2 + (planar and baseline is not None)
    with picture(path, 14, 4.1 * rows + 0.7, _heading(result)) as figure:
        panels = figure.add_gridspec(rows, 3)
        (_draw_plane if planar else _draw_features)(figure, panels, result, baseline)
        letters = "abcdefgh"[2 * rows :]
        history = result.metrics["history"]
        if result.config.method == "dann":
            column = panels[:, 2].subgridspec(2, 1, height_ratios=(2, 1))
            _draw_losses(figure.add_subplot(column[0]), letters[0], history)
            _draw_coefficients(figure.add_subplot(column[1]), letters[1], history)
        else:
            _draw_losses(figure.add_subplot(panels[:, 2]), letters[0], history)


def _heading(result: Result) -> str:
    config, score = result.config, result.metrics["target_accuracy"]
    scored = "" if score is None else f": {score:.1%} of the target's test samples right"
    method, backend = METHOD_TITLES[config.method], FRAMEWORKS[config.backend]
    heading = f"{method} on {short_name(result.task.name)}, {backend}, {config.steps} steps{scored}"
    return heading[0].upper() + heading[1:]


def _draw_plane(figure: Figure, panels: GridSpec, result: Result, baseline: Result | None) -> None:
    moments: list[tuple[str, Snapshot, Result | None]] = [("before training", result.before, None)]
    if baseline is not None:
        moments.append(("before adaptation (source only)", baseline.after, baseline))
        moments.append(("after adaptation (DANN)", result.after, result))
    else:
        moments.append(("after training", result.after, result))
    for row, (moment, snapshot, scored) in enumerate(moments):
        decision, features = (figure.add_subplot(panels[row, column]) for column in (0, 1))
        draw_decision(decision, snapshot, result.task)
        score = None if scored is None else scored.metrics["target_accuracy"]
        title(decision, "ace"[row], f"decision {moment}" if score is None else f"{moment}: {score:.1%} right")
        embedding = embed(snapshot)
        draw_domains(features, embedding)
        title(features, "bdf"[row], f"representation{_how(embedding)}")


def _draw_features(figure: Figure, panels: GridSpec, result: Result, _: Result | None) -> None:
    for column, moment, snapshot in ((0, "before", result.before), (1, "after", result.after)):
        by_domain, by_class = (figure.add_subplot(panels[row, column]) for row in (0, 1))
        embedding = embed(snapshot)
        draw_domains(by_domain, embedding)
        draw_classes(by_class, embedding, snapshot)
        title(by_domain, "ab"[column], f"features {moment} training{_how(embedding)}, by domain")
        title(by_class, "cd"[column], f"features {moment} training{_how(embedding)}, by class")


def _how(embedding: Embedding | None) -> str:
    return "" if embedding is None else f" ({embedding.name})"


def _draw_losses(panel: Axes, letter: str, history: History) -> None:
    drawn = [_curve(panel, history, "label_loss", LABEL, "label loss")]
    if any(record["domain_loss"] is not None for record in history):
        drawn.append(_curve(panel, history, "domain_loss", TARGET, "domain loss"))
        panel.axhline(log(2), color=GREY, linestyle=":", linewidth=1.4, label="ln 2, the domain loss at chance")
    top = max([log(2), *(value for values in drawn for value in values)])
    panel.set(xlabel="step", ylabel="loss of a batch (nats)", xlim=_steps(history), ylim=(0, 1.35 * top))
    panel.legend(loc="upper right")
    title(panel, letter, "losses")


def _draw_coefficients(panel: Axes, letter: str, history: History) -> None:
    _curve(panel, history, "coeff", COEFF, "λ")
    values = [record["coeff"] for record in history]
    panel.set(
        xlabel="step",
        ylabel="λ",
        xlim=_steps(history),
        ylim=(min(-0.05, 1.1 * min(values)), max(1.05, 1.1 * max(values))),
    )
    title(panel, letter, "coefficient of the reversal")


def _curve(panel: Axes, history: History, name: str, colour: str, label: str) -> list[float]:
    """Draw one value of the history, and return its finite values."""
    points = [(record["step"], record[name]) for record in history if record[name] is not None]
    marker = "o" if len(points) < 4 else None  # a line through one point is invisible
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.plot([x for x, _ in points], [y for _, y in points], color=colour, label=label, marker=marker)
    return [y for _, y in points]


def _steps(history: History) -> tuple[float, float]:
    return 0, 1.02 * history[-1]["step"]
