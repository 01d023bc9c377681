"""The features of both domains in two dimensions, and decisions in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from grl.arrays import Array
from grl.datasets import Task
from grl.experiment import Snapshot
from grl.pictures import CLASSES, GREY, SOURCE, TARGET

__all__ = ["Embedding", "draw_classes", "draw_decision", "draw_domains", "draw_points", "embed", "legend_below"]

_SAMPLES = 400  # per domain in an embedding: enough to see a structure, few enough for a fast t-SNE
_OUTLINE = [withStroke(linewidth=3, foreground="white")]


@dataclass(frozen=True)
class Embedding:
    """Features of a snapshot in two dimensions, both domains in one embedding.

    Args:
        source: (n, 2).
        target: (m, 2).
        name: the method: "t-SNE", "PCA", or "as they are".
    """

    source: Array
    target: Array
    name: str


def embed(snapshot: Snapshot) -> Embedding | None:
    """Reduce features to two dimensions: by PCA, which keeps straight lines, up to 64 features, and by t-SNE beyond.

    Args:
        snapshot: the features of both domains; up to 400 samples of each are used.

    Returns:
        The points, or None if a feature is not finite, because the run has diverged.
    """
    source, target = snapshot.source_features[:_SAMPLES], snapshot.target_features[:_SAMPLES]
    features = np.concatenate([source, target]).astype(np.float64)
    if not np.isfinite(features).all():
        return None
    if features.shape[1] <= 2:
        points, name = np.pad(features, ((0, 0), (0, 2 - features.shape[1]))), "as they are"
    elif features.shape[1] <= 64 or len(features) < 100:
        points, name = _principal(features, 2), "PCA"
    else:
        points, name = _neighbours(features), "t-SNE"
    return Embedding(points[: len(source)], points[len(source) :], name)


def _principal(features: Array, count: int) -> Array:
    centred = features - features.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = (left * sizes)[:, :count]
    return np.pad(points, ((0, 0), (0, max(0, count - points.shape[1]))))


def _neighbours(features: Array) -> Array:
    from sklearn.manifold import TSNE

    reduced = _principal(features, 50)  # drops noise, and makes the search for neighbours ten times faster
    start = reduced[:, :2] / max(float(reduced[:, 0].std()), 1e-12) * 1e-4
    return np.asarray(TSNE(perplexity=30, init=start.astype(np.float32), random_state=0).fit_transform(reduced))


def draw_domains(panel: Axes, embedding: Embedding | None, snapshot: Snapshot | None = None) -> None:
    """Draw an embedding by domain, source as circles and target as crosses, with the class names of a snapshot."""
    if _blank(panel, embedding):
        return
    assert embedding is not None
    draw_points(panel, embedding.source, "o", SOURCE, "source")
    draw_points(panel, embedding.target, "x", TARGET, "target")
    if snapshot is not None:
        name_classes(panel, embedding, snapshot)
    legend_below(panel)


def draw_classes(panel: Axes, embedding: Embedding | None, snapshot: Snapshot) -> None:
    """Draw an embedding by class, with the same markers and each class's name in the middle of its source samples."""
    if _blank(panel, embedding):
        return
    assert embedding is not None
    labels = snapshot.source_labels[: len(embedding.source)]
    draw_points(panel, embedding.source, "o", _class_colours(labels))
    if snapshot.target_labels is None:
        draw_points(panel, embedding.target, "x", GREY)
    else:
        draw_points(panel, embedding.target, "x", _class_colours(snapshot.target_labels[: len(embedding.target)]))
    name_classes(panel, embedding, snapshot)
    for marker, name in (("o", "source"), ("x", "target")):
        draw_points(panel, np.empty((0, 2)), marker, GREY, name)
    legend_below(panel)


def name_classes(panel: Axes, embedding: Embedding, snapshot: Snapshot) -> None:
    """Write the label of each class at the source sample that is closest to the median of the class."""
    labels = snapshot.source_labels[: len(embedding.source)]
    for label in np.unique(labels)[:20]:
        points = embedding.source[labels == label]
        closest = points[np.linalg.norm(points - np.median(points, axis=0), axis=1).argmin()]
        panel.annotate(str(label), closest, ha="center", va="center", weight="bold", fontsize=13, path_effects=_OUTLINE)


def draw_decision(panel: Axes, snapshot: Snapshot, task: Task) -> None:
    """Draw the decision boundary of a two-class classifier in the plane, as in figure 2 of Ganin et al. 2016."""
    assert snapshot.boundary is not None
    across, up, odds = snapshot.boundary
    extent = (float(across[0]), float(across[-1]), float(up[0]), float(up[-1]))
    panel.imshow(
        odds,
        extent=extent,
        origin="lower",
        cmap="PuOr",
        vmin=0,
        vmax=1,
        alpha=0.45,
        aspect="auto",
        interpolation="bilinear",
    )
    if odds.min() < 0.5 < odds.max():
        panel.contour(across, up, odds, levels=[0.5], colors="black", linewidths=1.8)
    few = task.excerpt(1000)  # more points would cover the plane
    for label, marker, colour in ((0, "_", "#B35806"), (1, "+", "#542788")):
        draw_points(panel, few.x_source[few.y_source == label], marker, colour, f"source, class {label}", size=38)
    draw_points(panel, np.asarray(few.x_target), ".", "black", "target", size=26)
    panel.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    panel.spines[:].set_visible(True)
    legend_below(panel)


def draw_points(
    panel: Axes, points: Array, marker: str, colours: str | Sequence[str], label: str | None = None, size: float = 16
) -> None:
    """Draw points (N, 2), in one colour or one colour each. Circles are hollow and do not hide the points below."""
    paint: dict[str, Any] = {"facecolors": "none", "edgecolors": colours} if marker == "o" else {"c": colours}
    line = 0 if marker == "." else 0.9 if size < 20 else 1.4
    panel.scatter(points[:, 0], points[:, 1], s=size, marker=marker, linewidths=line, label=label, **paint)


def legend_below(panel: Axes) -> None:
    """Put the legend below a panel without ticks, where it hides nothing."""
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, columnspacing=1.2, borderaxespad=0.2)


def _class_colours(labels: Array) -> list[str]:
    return [CLASSES[label % len(CLASSES)] for label in labels]


def _blank(panel: Axes, embedding: Embedding | None) -> bool:
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(True)
    panel.spines[:].set_color("#BBBBBB")
    if embedding is None:
        note = "features not finite:\nthe training diverged"
        panel.text(0.5, 0.5, note, ha="center", va="center", transform=panel.transAxes)
    return embedding is None
