"""The pictures: what one run learned (report.png), and what the demo shows (demo.png)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from os import PathLike
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from grl.checkpoint import replacing
from grl.experiment import Result, Snapshot

__all__ = ["draw_demo", "draw_report", "loss_gaps"]

Array = NDArray[Any]

# Okabe and Ito's colours, which stay apart for the colour-blind.
_SOURCE, _TARGET, _LABEL, _COEFF, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7f7f7f"
_SAMPLES = 300  # of each domain in an embedding: enough to see, few enough to be quick


def draw_report(result: Result, path: str | PathLike[str]) -> None:
    """Draw a run: the features (or, in two dimensions, the decision) before and after training, and the curves.

    Args:
        result: a finished run.
        path: the PNG file, written whole or not at all.
    """
    figure = Figure(figsize=(14, 8), layout="constrained")
    config, metrics = result.config, result.metrics
    score = metrics["target_accuracy"]
    scored = "" if score is None else f": {score:.1%} of the target right"
    figure.suptitle(f"{metrics['task']}, {config.method}, {config.backend}, {config.steps} steps{scored}", fontsize=15)
    panels = figure.subplots(2, 3)
    moments = ((0, "before", result.before), (1, "after", result.after))
    for column, moment, snapshot in moments:
        if snapshot.boundary is not None:
            _draw_decision(panels[0, column], snapshot, result)
            panels[0, column].set_title(f"decision {moment} training")
        embedded = _embed(snapshot)
        by_domain = panels[1 if snapshot.boundary is not None else 0, column]
        _draw_domains(by_domain, embedded)
        by_domain.set_title(f"features {moment} training, by domain ({_embedding_name(snapshot)})")
        if snapshot.boundary is None:
            _draw_classes(panels[1, column], snapshot, embedded)
            panels[1, column].set_title("the same, by class (○ source, × target)")
    _draw_losses(panels[0, 2], metrics["history"])
    _draw_coefficients(panels[1, 2], metrics["history"])
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_demo(results: Sequence[Result], path: str | PathLike[str]) -> None:
    """Draw the demo: samples, accuracies by backend and method, features, and the gap between the backends.

    Args:
        results: source-only and DANN, of one or both backends, from the same start on the same images.
        path: the PNG file, written whole or not at all.
    """
    figure = Figure(figsize=(15, 9), layout="constrained")
    figure.suptitle(
        "Domain adaptation by gradient reversal: trained on labelled digits, tested on digits over photographs"
    )
    grid = figure.add_gridspec(2, 6)
    _draw_samples(figure, grid[0, :2], results[0])
    _draw_accuracies(figure.add_subplot(grid[0, 2:4]), results)
    _draw_gaps(figure.add_subplot(grid[0, 4:]), loss_gaps(results))
    shown = [next(r for r in results if r.config.method == method) for method in ("source-only", "dann")]
    for place, result in zip((grid[1, :3], grid[1, 3:]), shown, strict=True):
        panel = figure.add_subplot(place)
        embedded = _embed(result.after)
        _draw_domains(panel, embedded)
        name = {"source-only": "source only", "dann": "DANN"}[result.config.method]
        panel.set_title(f"features after training, {name} ({result.config.backend}; {_embedding_name(result.after)})")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def loss_gaps(results: Sequence[Result]) -> dict[str, tuple[Array, Array]]:
    """Return, by method, the logged steps and the largest |loss in PyTorch − loss in JAX| at each.

    Args:
        results: runs of the same settings but for backend and method. A method that only one backend ran is left out.
    """
    gaps = {}
    for method in dict.fromkeys(result.config.method for result in results):
        histories = [r.metrics["history"] for r in results if r.config.method == method]
        if len(histories) == 2:
            steps = np.array([record["step"] for record in histories[0]])
            pairs = [
                [abs(a[key] - b[key]) for key in ("label_loss", "domain_loss") if None not in (a[key], b[key])]
                for a, b in zip(*histories, strict=True)
            ]
            gaps[method] = steps, np.array([max(pair, default=np.nan) for pair in pairs])
    return gaps


def _embed(snapshot: Snapshot) -> tuple[Array, Array]:
    """Features of both domains in two dimensions, in one embedding."""
    source, target = snapshot.source_features[:_SAMPLES], snapshot.target_features[:_SAMPLES]
    features = np.concatenate([source, target]).astype(np.float64)
    if features.shape[1] > 2:
        if _is_small(snapshot):
            from sklearn.decomposition import PCA

            features = PCA(2, random_state=0).fit_transform(features)
        else:
            from sklearn.manifold import TSNE

            features = TSNE(perplexity=30, init="pca", random_state=0).fit_transform(features)
    return features[: len(source)], features[len(source) :]


def _is_small(snapshot: Snapshot) -> bool:
    return snapshot.source_features.shape[1] <= 16 or len(snapshot.source_features) < 100


def _embedding_name(snapshot: Snapshot) -> str:
    return "PCA" if _is_small(snapshot) else "t-SNE"


def _draw_domains(panel: Axes, embedded: tuple[Array, Array]) -> None:
    for points, colour, marker, name in zip(embedded, (_SOURCE, _TARGET), "ox", ("source", "target"), strict=True):
        face = {"facecolors": "none", "edgecolors": colour} if marker == "o" else {"color": colour}
        panel.scatter(*points.T, s=18, marker=marker, linewidths=0.9, label=name, **face)
    panel.legend(loc="best", framealpha=0.9)
    panel.set(xticks=[], yticks=[])


def _draw_classes(panel: Axes, snapshot: Snapshot, embedded: tuple[Array, Array]) -> None:
    labels = (snapshot.source_labels, snapshot.target_labels)
    largest = max(int(of_domain.max()) for of_domain in labels if of_domain is not None)
    for points, of_domain, marker in zip(embedded, labels, "ox", strict=True):
        if of_domain is None:
            panel.scatter(*points.T, s=14, marker=marker, color=_GREY, linewidths=0.9)
            continue
        seen = of_domain[: len(points)]
        panel.scatter(
            *points.T, s=14, marker=marker, c=seen, cmap="tab10", vmin=0, vmax=max(largest, 9), linewidths=0.9
        )
        if marker == "o" and largest < 20:
            for label in np.unique(seen):  # the digit itself names its cluster
                middle = np.median(points[seen == label], axis=0)
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "edgecolor": "none"}
                panel.annotate(str(label), middle, ha="center", va="center", weight="bold", bbox=box)
    panel.set(xticks=[], yticks=[])


def _draw_decision(panel: Axes, snapshot: Snapshot, result: Result) -> None:
    assert snapshot.boundary is not None
    across, up, odds = snapshot.boundary
    panel.contourf(across, up, odds, levels=np.linspace(0, 1, 11), cmap="PuOr", alpha=0.45)
    panel.contour(across, up, odds, levels=[0.5], colors="black", linewidths=1.5)
    x, y = result.task.x_source, result.task.y_source
    for label, marker, colour in ((0, "_", "#B35806"), (1, "+", "#542788")):
        panel.scatter(*x[y == label].T, marker=marker, color=colour, s=40, label=f"source, class {label}")
    panel.scatter(*result.task.x_target.T, s=7, color="black", label="target, unlabelled")
    panel.legend(loc="upper right", fontsize=8, framealpha=0.9)
    panel.set(xticks=[], yticks=[])


def _draw_losses(panel: Axes, history: list[dict[str, Any]]) -> None:
    steps = [record["step"] for record in history]
    panel.plot(steps, [_number(r["label_loss"]) for r in history], color=_LABEL, label="label loss (source)")
    if any(record["domain_loss"] is not None for record in history):
        panel.plot(steps, [_number(r["domain_loss"]) for r in history], color=_TARGET, label="domain loss")
        panel.axhline(log(2), color=_GREY, linestyle="--", label="ln 2: the domain loss at chance")
    panel.set(xlabel="step", ylabel="loss (nats)", title="losses")
    panel.set_ylim(bottom=0)
    panel.legend()


def _draw_coefficients(panel: Axes, history: list[dict[str, Any]]) -> None:
    panel.plot([record["step"] for record in history], [record["coeff"] for record in history], color=_COEFF)
    panel.set(xlabel="step", ylabel="λ", title="coefficient of the reversal")


def _draw_samples(figure: Figure, place: Any, result: Result, columns: int = 6) -> None:
    rows = [result.task.x_source[:columns], result.task.x_target[:columns]]
    images = [np.concatenate(list(np.clip(row.transpose(0, 2, 3, 1), 0, 1)), axis=1) for row in rows]
    panel = figure.add_subplot(place)
    gap = np.ones((max(2, images[0].shape[0] // 10), images[0].shape[1], images[0].shape[2]))
    panel.imshow(np.concatenate([images[0], gap, images[1]]).squeeze(), cmap="gray", interpolation="nearest")
    panel.set(xticks=[], title="source (labelled) and target (unlabelled)")
    height = images[0].shape[0]
    panel.set_yticks([height / 2, 1.5 * height + len(gap)], ["source", "target"])
    panel.spines[:].set_visible(False)


def _draw_accuracies(panel: Axes, results: Sequence[Result]) -> None:
    backends = list(dict.fromkeys(result.config.backend for result in results))
    for offset, method, colour in ((-0.2, "source-only", _GREY), (0.2, "dann", _SOURCE)):
        scores = {r.config.backend: r.metrics["target_accuracy"] for r in results if r.config.method == method}
        places = [i + offset for i in range(len(backends))]
        name = {"source-only": "source only", "dann": "DANN"}[method]
        bars = panel.bar(places, [scores[backend] for backend in backends], 0.36, color=colour, label=name)
        panel.bar_label(bars, fmt="{:.1%}", padding=2)
    panel.axhline(1 / results[0].task.num_classes, color="black", linestyle=":", linewidth=1, label="chance")
    panel.set_xticks(range(len(backends)), [{"torch": "PyTorch", "jax": "JAX"}[backend] for backend in backends])
    panel.set(ylim=(0, 1.05), title="accuracy on the target's test images")
    panel.legend(loc="upper left", ncols=3, fontsize=9)


def _draw_gaps(panel: Axes, gaps: dict[str, tuple[Array, Array]]) -> None:
    panel.set(title="|loss in PyTorch − loss in JAX|", xlabel="step")
    if not gaps:
        panel.text(0.5, 0.5, "one framework is installed", ha="center", va="center", transform=panel.transAxes)
        return
    for (method, (steps, values)), colour in zip(gaps.items(), (_GREY, _SOURCE), strict=False):
        panel.semilogy(
            steps, np.maximum(values, 1e-9), color=colour, label={"source-only": "source only"}.get(method, "DANN")
        )
    panel.legend()


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
