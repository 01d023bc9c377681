"""`grl train`: one run of one method in one framework."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from grl.cli.progress import showing
from grl.config import Config, ConfigError
from grl.datasets import TASKS

__all__ = ["train"]

_DATA, _RUN, _OPTIMISER, _OUTPUT = "What to train on", "The run", "The optimiser", "Output"


def _by_task(name: str) -> str:
    """The default shown for a setting: the general one, and those of the tasks that recommend another."""
    general = getattr(Config(), name)
    others = {task: getattr(Config.recommended(task), name) for task in TASKS}
    shown = "none" if general is None else str(general)
    return "; ".join([shown, *(f"{value} for {task}" for task, value in others.items() if value != general)])


def train(
    backend: Annotated[
        Literal["torch", "jax"], typer.Option(help="The framework that trains.", rich_help_panel=_RUN)
    ] = "torch",
    task: Annotated[
        str | None,
        typer.Option(help=f"A built-in task: {', '.join(TASKS)}.", show_default="mnist-mnistm", rich_help_panel=_DATA),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.npz",
            help="Your own arrays instead: x_source, y_source, x_target; to be scored x_test, y_test; for "
            "--method target also y_target. Images (N, C, H, W) or vectors (N, D), labels integers from 0.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    method: Annotated[
        Literal["source-only", "dann", "target"],
        typer.Option(
            help="source-only: labels of the source alone. dann: domain-adversarial, by gradient reversal. "
            "target: on the target's own labels, the upper bound.",
            rich_help_panel=_RUN,
        ),
    ] = "dann",
    steps: Annotated[
        int | None, typer.Option(help="Updates.", show_default=_by_task("steps"), rich_help_panel=_RUN)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Samples a step, of each domain.", show_default=_by_task("batch_size"), rich_help_panel=_RUN),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="dann[:GAMMA]|linear[:START:END]|constant[:VALUE]",
            help="λ over the steps: the paper's ramp from 0 to 1, a straight line, or one value.",
            show_default=_by_task("schedule"),
            rich_help_panel=_RUN,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Draws weights and batches, the same for both backends.", rich_help_panel=_RUN)
    ] = 0,
    device: Annotated[
        str, typer.Option(help="The framework's name of it: cpu, cuda, cuda:1, gpu, ...", rich_help_panel=_RUN)
    ] = "cpu",
    dtype: Annotated[
        Literal["float32", "float64"],
        typer.Option(help="In float64 the two backends agree to rounding.", rich_help_panel=_RUN),
    ] = "float32",
    optimizer: Annotated[
        Literal["adam", "sgd"] | None,
        typer.Option(help="The rule of the update.", show_default=_by_task("optimizer"), rich_help_panel=_OPTIMISER),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of the feature extractor, at the start.",
            show_default=_by_task("learning_rate"),
            rich_help_panel=_OPTIMISER,
        ),
    ] = None,
    classifier_learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of both classifiers, at the start.", show_default="as --learning-rate", rich_help_panel=_OPTIMISER
        ),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(
            help="d: learning rates are divided by (1 + d·p)^0.75 at progress p from 0 to 1.",
            show_default=_by_task("decay"),
            rich_help_panel=_OPTIMISER,
        ),
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help="Of sgd.", show_default=_by_task("momentum"), rich_help_panel=_OPTIMISER)
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option(help="Largest global norm of a gradient.", show_default="no clipping", rich_help_panel=_OPTIMISER),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Weights to start from, of a run in either backend, instead of drawn ones.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    log_every: Annotated[
        int | None,
        typer.Option(
            help="Steps from one record of the history to the next.",
            show_default=_by_task("log_every"),
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Receives config.json, metrics.json, model.safetensors and report.png.",
            show_default="runs/TASK-METHOD-BACKEND-SEED",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
) -> None:
    """Train one model and score it on the target.

    The target's labels are read for the final score alone, which is the last step's and not the best one's.
    """
    if task is not None and data is not None:
        raise ConfigError("--task and --data: got both; accepted is one of them.")
    settings: dict[str, Any] = {
        name: value for name, value in locals().items() if name not in ("task", "out") and value is not None
    }
    config = Config.recommended(task or ("mnist-mnistm" if data is None else "data"), **settings)
    _run(config, out)


def _run(config: Config, out: Path | None) -> None:
    from grl.experiment import load_data, prepare_directory, save, train  # not before bad options are refused
    from grl.report import draw_report

    data = load_data(config)
    if out is None:
        out = Path("runs") / f"{Path(data.name).stem}-{config.method}-{config.backend}-{config.seed}"
    prepare_directory(out)
    console = Console()
    with showing(f"{data.name} {config.method} {config.backend}", console) as progress:
        result = train(config, task=data, progress=progress)
    save(result, out)
    draw_report(result, out / "report.png")
    console.print(_summary(result.metrics))
    console.print(f"written: {out}/config.json, metrics.json, model.safetensors, report.png", soft_wrap=True)


def _summary(metrics: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    rows = {
        "accuracy on the source": metrics["source_accuracy"],
        "accuracy on the target": metrics["target_accuracy"],
        "domain classifier's accuracy (chance 0.5)": metrics["domain_accuracy"],
        "proxy A-distance (0 alike, 2 apart)": metrics["proxy_a_distance"],
        "seconds": metrics["seconds"],
    }
    for name, value in rows.items():
        table.add_row(name, "—" if value is None else f"{value:.3f}" if name != "seconds" else f"{value:.1f}")
    return table
