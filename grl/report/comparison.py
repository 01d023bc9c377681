"""demo.png: both methods in both backends at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from os import PathLike
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from grl.arrays import Array
from grl.backends import FRAMEWORKS
from grl.datasets import Task
from grl.experiment import Result
from grl.experiment.demo import loss_gaps
from grl.pictures import GREY, LABEL, METHOD_TITLES, SOURCE, TARGET, picture, short_name, title
from grl.report.features import draw_domains, draw_points, embed, legend_below

__all__ = ["draw_demo"]

_COLOURS = {"source-only": GREY, "dann": LABEL}
_LINES: dict[str, Any] = {  # equal curves stay visible: one is drawn through the other
    "torch": {"color": LABEL, "linewidth": 3.5, "alpha": 0.6},
    "jax": {"color": "black", "linewidth": 1.2, "linestyle": "--"},
}


def draw_demo(results: Sequence[Result], path: str | PathLike[str]) -> None:
    """Draw samples, accuracies by backend and method, features, losses, and the gap between the backends.

    Args:
        results: source-only and DANN, of one or both backends, from the same start on the same data.
        path: the PNG file, written whole or not at all.

    Raises:
        WriteError: the file cannot be written.
    """
    first, config = results[0], results[0].config
    name = short_name(first.task.name)
    heading = f"Domain adaptation by gradient reversal: {name}, {config.steps} steps, seed {config.seed}"
    with picture(path, 15, 9, heading) as figure:
        panels = figure.subplots(2, 3)
        _draw_samples(panels[0, 0], first.task)
        title(panels[0, 0], "a", "source, labelled, and target, unlabelled")
        _draw_accuracies(panels[0, 1], results)
        title(panels[0, 1], "b", "accuracy on the target's test samples")
        _draw_gaps(panels[0, 2], results)
        title(panels[0, 2], "c", "|loss in PyTorch − loss in JAX|, float32")
        shown = [next(r for r in results if r.config.method == method) for method in ("source-only", "dann")]
        for panel, letter, result in zip(panels[1], "de", shown, strict=False):
            embedding = embed(result.after)
            draw_domains(panel, embedding, result.after)
            method, backend = METHOD_TITLES[result.config.method], FRAMEWORKS[result.config.backend]
            title(panel, letter, f"features, {method} ({backend}, {embedding.name if embedding else ''})")
        _draw_domain_losses(panels[1, 2], results)
        title(panels[1, 2], "f", "DANN's domain loss, mean of 20 steps")


def _draw_samples(panel: Axes, task: Task, columns: int = 6) -> None:
    if task.x_source.ndim == 2:
        draw_points(panel, np.asarray(task.x_source), "o", SOURCE, "source")
        draw_points(panel, np.asarray(task.x_target), "x", TARGET, "target")
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(True)
        legend_below(panel)
        return
    side = task.sample_shape[1]
    gap = max(1, side // 14)
    rows = []
    for images in (task.x_source, task.x_target):
        for start in (0, columns):
            strip = [
                np.pad(image, ((0, 0), (gap, gap), (gap, gap)), constant_values=1)
                for image in images[start : start + columns]
            ]
            rows.append(np.concatenate(strip, axis=2))
        rows.append(np.ones_like(rows[-1][:, : 3 * gap]))
    picture = np.clip(np.concatenate(rows[:-1], axis=1).transpose(1, 2, 0), 0, 1)
    panel.imshow(
        picture if picture.shape[2] == 3 else picture.mean(2), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    height = side + 2 * gap
    panel.set_yticks([height, 3 * height + 3 * gap], ["source", "target"], rotation=90, va="center")
    panel.tick_params(length=0)
    panel.set_anchor("N")
    panel.set(xticks=[])
    panel.spines[:].set_visible(False)


def _draw_accuracies(panel: Axes, results: Sequence[Result]) -> None:
    backends = list(dict.fromkeys(result.config.backend for result in results))
    methods = list(dict.fromkeys(result.config.method for result in results))
    width = 0.72 / len(backends)
    for result in results:
        method, backend = result.config.method, result.config.backend
        place = methods.index(method) + (backends.index(backend) - (len(backends) - 1) / 2) * width
        hatch = "//" if backend == "jax" else ""
        score = result.metrics["target_accuracy"]
        bar = panel.bar(place, score, 0.92 * width, color=_COLOURS[method], edgecolor="white", hatch=hatch)
        panel.bar_label(bar, [f"{FRAMEWORKS[backend]}\n{score:.1%}"], padding=3)
    chance = 1 / results[0].task.num_classes
    panel.axhline(chance, color="black", linestyle=":", linewidth=1.4)
    panel.text((len(methods) - 1) / 2, chance + 0.01, f"chance\n{chance:.0%}", ha="center", va="bottom")
    panel.set_xticks(range(len(methods)), [METHOD_TITLES[method] for method in methods])
    panel.set(ylim=(0, 1.12), yticks=np.linspace(0, 1, 6), xlim=(-0.5, len(methods) - 0.5))
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_gaps(panel: Axes, results: Sequence[Result]) -> None:
    gaps = loss_gaps(results)
    if not gaps:
        panel.text(0.5, 0.5, "only one framework is installed", ha="center", va="center", transform=panel.transAxes)
        panel.set(xticks=[], yticks=[])
        return
    for method, by_step in gaps.items():
        steps, values = np.array(list(by_step)), np.array(list(by_step.values()))
        positive = values > 0  # a logarithmic axis cannot show a gap of zero
        label = METHOD_TITLES[method]
        panel.loglog(steps[positive], values[positive], color=_COLOURS[method], label=label, linewidth=1.2)
    panel.set(xlabel="step", ylabel="gap (nats)")
    panel.legend(loc="upper left")


def _draw_domain_losses(panel: Axes, results: Sequence[Result]) -> None:
    for result in results:
        values = [r["domain_loss"] for r in result.metrics["history"] if r["domain_loss"] is not None]
        if values:
            backend = result.config.backend
            smooth = _mean_of(np.array(values), 20)
            steps = np.arange(len(values) - len(smooth), len(values)) + 1
            panel.plot(steps, smooth, label=FRAMEWORKS[backend], **_LINES[backend])
    panel.axhline(log(2), color=GREY, linestyle=":", linewidth=1.4, label="ln 2, chance")
    low, high = panel.get_ylim()
    panel.set(xlabel="step", ylabel="domain loss (nats)", xlim=(0, None), ylim=(low, high + 0.35 * (high - low)))
    panel.legend(loc="upper right")


def _mean_of(values: Array, count: int) -> Array:
    count = min(count, len(values))
    return np.convolve(values, np.full(count, 1 / count), mode="valid")
