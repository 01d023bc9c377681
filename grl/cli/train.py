"""`grl train`: one run from the command line."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from grl.cli.output import integer, output_directory, real
from grl.cli.progress import Follower, make_console
from grl.config import BACKENDS, METHODS, Config, ConfigError
from grl.datasets import TASKS, DataError
from grl.experiment import CheckpointError, Processes, Result, join, load_data, report_gradients, save
from grl.experiment import train as run
from grl.parity.verdict import explain_chance

__all__ = ["train"]

_WHAT, _HOW, _WHERE, _OUT = "What to train", "How to train", "Where to compute", "What to write"


def _option(name: str, help: str, panel: str, metavar: str, default: str | None = None) -> Any:
    """An option without a value of its own: where it is not given, the task's recommended setting stays."""
    shown = _defaults(name.strip("-").replace("-", "_")) if default is None else default
    text = f"{help} [dim]\\[default: {shown}][/dim]"
    parser: Any = {"N": integer, "X": real}.get(metavar)
    return typer.Option(name, help=text, rich_help_panel=panel, metavar=metavar, show_default=False, parser=parser)


def _defaults(name: str) -> str:
    general = getattr(Config, name)
    others = {task: getattr(Config.recommended(task), name) for task in TASKS}
    return "; ".join([f"{general}", *(f"{task}: {value}" for task, value in others.items() if value != general)])


def train(
    backend: Annotated[
        str | None, _option("--backend", "The framework that trains.", _WHAT, "|".join(BACKENDS))
    ] = None,
    task: Annotated[
        str | None,
        _option("--task", f"A built-in task, source-target: {', '.join(TASKS)}.", _WHAT, "NAME", Config.task),
    ] = None,
    data: Annotated[
        str | None,
        _option(
            "--data",
            "Your own arrays instead: an .npz with x_source, y_source, x_target and, to score, x_test and y_test"
            " (for --method target also y_target). Images (N, C, H, W) or vectors (N, D), used as they are.",
            _WHAT,
            "FILE",
            "none",
        ),
    ] = None,
    method: Annotated[
        str | None,
        _option(
            "--method",
            "source-only: no adaptation, the lower bound. dann: adversarial, through the gradient reversal."
            " target: on labelled target data, the upper bound.",
            _WHAT,
            "|".join(METHODS),
        ),
    ] = None,
    start: Annotated[
        str | None,
        _option(
            "--init",
            "Start from the model.safetensors of a run of either backend, instead of weights drawn from the seed.",
            _WHAT,
            "FILE",
            "none",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        _option("--seed", "Draws the initial weights and the batches, the same in both backends.", _WHAT, "N"),
    ] = None,
    steps: Annotated[int | None, _option("--steps", "Updates of the weights.", _HOW, "N")] = None,
    batch_size: Annotated[
        int | None, _option("--batch-size", "Samples a step, of each domain; the shorter cycles.", _HOW, "N")
    ] = None,
    optimizer: Annotated[str | None, _option("--optimizer", "The rule of the updates.", _HOW, "adam|sgd")] = None,
    learning_rate: Annotated[
        float | None, _option("--learning-rate", "Of the feature extractor, at the first step.", _HOW, "X")
    ] = None,
    classifier_learning_rate: Annotated[
        float | None,
        _option(
            "--classifier-learning-rate",
            "Of the label and domain classifiers, at the first step.",
            _HOW,
            "X",
            "as --learning-rate",
        ),
    ] = None,
    momentum: Annotated[float | None, _option("--momentum", "Of sgd, from 0 to below 1.", _HOW, "X")] = None,
    decay: Annotated[
        float | None,
        _option(
            "--decay",
            "d in the division of both learning rates by (1 + d·p)^0.75, at progress p from 0 to 1; 0: constant rates.",
            _HOW,
            "X",
        ),
    ] = None,
    clip_norm: Annotated[
        float | None,
        _option("--clip-norm", "Scale gradients down to this global norm.", _HOW, "X", "no clipping"),
    ] = None,
    schedule: Annotated[
        str | None,
        _option(
            "--schedule",
            "λ at progress p. dann or dann:GAMMA: 2/(1 + exp(-GAMMA·p)) - 1, GAMMA 10. linear or linear:START:END:"
            " a straight line, 0 to 1. constant or constant:VALUE: 1.",
            _HOW,
            "RAMP",
        ),
    ] = None,
    device: Annotated[
        str | None,
        _option(
            "--device",
            "By the framework's name: cpu, cuda, cuda:1, gpu … In JAX a name without a number is all of that kind,"
            " which share the batches; of several PyTorch processes on a machine each takes one.",
            _WHERE,
            "NAME",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        _option("--dtype", "Precision; in float64 the backends agree to 1e-12.", _WHERE, "float32|float64"),
    ] = None,
    sharding: Annotated[
        str | None,
        _option(
            "--sharding",
            "Of several processes or devices, each holds the whole model (replicated; in PyTorch"
            " DistributedDataParallel) or its share of it (fsdp; fully_shard).",
            _WHERE,
            "replicated|fsdp",
        ),
    ] = None,
    timeout: Annotated[
        int | None, _option("--timeout", "Seconds that one process of several waits for another.", _WHERE, "N")
    ] = None,
    out: Annotated[
        str | None,
        _option(
            "--out",
            "The directory for config.json, metrics.json, model.safetensors and report.png; replaces those in it.",
            _OUT,
            "DIR",
            "runs/TASK-METHOD-BACKEND-SEED",
        ),
    ] = None,
    log_every: Annotated[
        int | None, _option("--log-every", "Steps from one record of the history to the next.", _OUT, "N")
    ] = None,
) -> None:
    """Train a classifier on a labelled source domain for an unlabelled target domain, and score it on the target.

    No target label is used but for the final score, and the score is the last step's.

    Several processes share every batch and train the model that one would; the first alone prints and writes.
    PyTorch: [bold]torchrun --nproc-per-node N -m grl train …[/bold] JAX: the same command N times, each with
    JAX_COORDINATOR_ADDRESS (HOST:PORT of the first), JAX_NUM_PROCESSES (N) and JAX_PROCESS_ID (0 to N - 1) in its
    environment, or by srun. For several machines see docs/scale-out.md.

    Example: [bold]grl train --backend jax --task moons --method dann --out runs/moons[/bold]
    """
    settings = {name: value for name, value in locals().items() if name not in ("task", "out")}
    if task is not None and data is not None:
        raise ConfigError("--task and --data: got both; accepted is one of them.")
    config = Config.recommended(task or (Config.task if data is None else "data"), **settings)
    with join(config) as processes:
        _train(config, out, processes)


def _train(config: Config, out: str | None, processes: Processes) -> None:
    console = make_console(silent=processes.index > 0)
    with ExitStack() as opened:
        with processes.agree(ConfigError, DataError, CheckpointError):
            arrays = load_data(config)
            if out is None:
                out = f"runs/{Path(arrays.name).stem}-{config.method}-{config.backend}-{config.seed}"
            folder = opened.enter_context(output_directory(out)) if processes.index == 0 else Path(out)
            if config.method == "dann" and processes.index == 0:
                report = report_gradients(config, task=arrays)
                last = f"Reversal at the schedule's last λ, {config.coeff(config.steps):.4g}"  # the first may be 0
                console.print(f"{last}: {report}", soft_wrap=True, markup=False)
        with Follower(console) as follower:

            def train_one(config: Config, label: str) -> Result:
                return run(config, task=arrays, progress=follower.run(label, config.steps), processes=processes)

            result = train_one(config, f"{config.method}, {config.backend}")
            baseline = None
            if result.after.boundary is not None and config.method == "dann":
                # The paper's figure 2 sets adaptation beside no adaptation; on points in the plane that takes seconds.
                baseline = train_one(replace(config, method="source-only"), "source-only, to compare")
        if processes.index == 0:
            _write(result, baseline, folder)
    console.print(_summarise(result, baseline))
    if result.metrics["history"][-1]["label_loss"] is None:
        console.print("The loss is not finite any more: try a lower --learning-rate, or --clip-norm 1.", soft_wrap=True)
    explanation = explain_chance(result.metrics["history"])
    if explanation is not None:
        console.print(explanation, soft_wrap=True, markup=False)
    _say_where(console, folder)


def _write(result: Result, baseline: Result | None, out: Path) -> None:
    from grl.report import draw_report  # matplotlib and scikit-learn take a second to import

    save(result, out)
    draw_report(result, out / "report.png", baseline)


def _summarise(result: Result, baseline: Result | None) -> Table:
    metrics = result.metrics
    last = metrics["history"][-1]
    table = Table(title=f"{metrics['task']}: {metrics['method']} in {metrics['backend']}, seed {metrics['seed']}")
    table.add_column("at the last step")
    table.add_column("value", justify="right")
    table.add_column("")
    compared = "" if baseline is None else f"source-only: {_number(baseline.metrics['target_accuracy'])}"
    table.add_row("source accuracy", _number(metrics["source_accuracy"]), "")
    table.add_row("target accuracy", _number(metrics["target_accuracy"]), compared)
    table.add_row("domain accuracy", _number(metrics["domain_accuracy"]), "chance: 0.500")
    table.add_row(
        "proxy A-distance", _number(metrics["proxy_a_distance"]), "0: domains look alike; 2: always told apart"
    )
    table.add_row("label loss", _number(last["label_loss"]), "")
    table.add_row("domain loss", _number(last["domain_loss"]), f"chance: ln 2 = {math.log(2):.3f}")
    table.add_row("seconds", f"{metrics['seconds']:.1f}", f"{metrics['steps'] / metrics['seconds']:.1f} steps/s")
    return table


def _number(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"


def _say_where(console: Console, out: Path) -> None:
    for name in ("config.json", "metrics.json", "model.safetensors", "report.png"):
        console.print(str(out / name), soft_wrap=True, markup=False)
