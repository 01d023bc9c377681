"""`grl train`: one run from the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from grl.cli.output import integer, output_directory, real
from grl.cli.progress import Follower, make_console
from grl.cli.signals import termination
from grl.cli.summary import remarks, summarise
from grl.datasets import ON_BAD_DATA, TASKS, DataError, Task
from grl.experiment import (
    CheckpointError,
    FaultError,
    Processes,
    Result,
    StoppedError,
    join,
    load_checkpoint,
    load_data,
    report_gradients,
    save,
    versions,
)
from grl.experiment import train as run
from grl.experiment.checkpoint import Checkpoint, unfinished
from grl.experiment.config import BACKENDS, METHODS, Config, ConfigError
from grl.experiment.processes import RefusedByAllError
from grl.files import WriteError

__all__ = ["train"]

_WHAT, _HOW, _WHERE = "What to train", "How to train", "Where to compute"
_OUT, _SURVIVE = "What to write", "What to do when something goes wrong"

_ANEW = ("backend", "device", "sharding", "timeout", "on_nan")  # what a resumed run may be given besides --out
_BESIDE_RESUME = ", ".join(f"--{name.replace('_', '-')}" for name in _ANEW) + " and --out"


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
            " (for --method target also y_target). Images (N, C, H, W) or vectors (N, D), used as they are. Or a"
            " folder: of x_source.npy and so on; of shards source-*.npz, test-*.npz (x, y) and target-*.npz (x); or of"
            " images source/CLASS/*.png, target/*.png, test/CLASS/*.png, which are scaled to 0 … 1.",
            _WHAT,
            "PATH",
            "none",
        ),
    ] = None,
    data_memory: Annotated[
        int | None,
        _option("--data-memory", "MiB of --data that stay in memory; the rest is read from disk.", _WHERE, "N"),
    ] = None,
    on_bad_data: Annotated[
        str | None,
        _option(
            "--on-bad-data",
            "At a shard or an image that cannot be used: stop, or skip it; metrics.json counts what was skipped.",
            _WHAT,
            "|".join(ON_BAD_DATA),
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
            "The directory for config.json, metrics.json, metrics.jsonl, model.safetensors and report.png, and for"
            " checkpoints; replaces those in it.",
            _OUT,
            "DIR",
            "runs/TASK-METHOD-BACKEND-SEED",
        ),
    ] = None,
    log_every: Annotated[
        int | None,
        _option(
            "--log-every", "Steps from one record of the history, and line of metrics.jsonl, to the next.", _OUT, "N"
        ),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option(
            "--tensorboard",
            help="Write event files for TensorBoard beside metrics.jsonl. [dim]\\[default: off][/dim]",
            rich_help_panel=_OUT,
            show_default=False,
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        _option(
            "--checkpoint-every",
            "Steps from one checkpoint to the next; the last one stays until the next one is whole. SIGTERM saves one"
            " in any case.",
            _SURVIVE,
            "N",
            "none",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        _option(
            "--resume",
            "Go on from the checkpoint in the directory of a run of either backend, with its settings; beside it only"
            f" {_BESIDE_RESUME} may be given. In the same backend the weights end bit for bit as if nothing had been.",
            _SURVIVE,
            "DIR",
            "none",
        ),
    ] = None,
    on_nan: Annotated[
        str | None,
        _option(
            "--on-nan",
            "If a loss is not finite: stop, with exit status 3, and keep the step's batch, weights and gradients"
            " (nan-*); or skip the update, and count it.",
            _SURVIVE,
            "stop|skip",
        ),
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
    settings = {name: value for name, value in locals().items() if name not in ("out", "resume")}
    config, checkpoint = _begin(settings) if resume is None else _go_on(resume, settings)
    with join(config) as processes, termination() as terminated:
        _train(config, checkpoint, resume if out is None else out, processes, terminated)
        if terminated():  # too late to stop anything
            raise typer.Exit(143)


def _begin(settings: dict[str, Any]) -> tuple[Config, None]:
    task, data = settings.pop("task"), settings["data"]
    if task is not None and data is not None:
        raise ConfigError("--task and --data: got both; expected one of them.")
    if task is None:
        task = Config.task if data is None else "data"
    return Config.recommended(task, **settings), None


def _go_on(resume: str, settings: dict[str, Any]) -> tuple[Config, Checkpoint]:
    given = {name: value for name, value in settings.items() if value is not None}
    for name in sorted(given.keys() - set(_ANEW)):
        option = "init" if name == "start" else name.replace("_", "-")
        raise ConfigError(f"--resume: got --{option} beside it; expected {_BESIDE_RESUME}.")
    checkpoint = load_checkpoint(resume)
    return replace(checkpoint.config, **given), checkpoint


def _train(
    config: Config,
    checkpoint: Checkpoint | None,
    out: str | None,
    processes: Processes,
    terminated: Callable[[], bool],
) -> None:
    console = make_console(silent=processes.index > 0)
    # What stands in the way of one's report, no such device say, stands in that of all: they refuse it where they run.
    by_all = (ConfigError, CheckpointError) if processes.count > 1 else ()
    with ExitStack() as opened:
        with processes.agree(ConfigError, DataError, CheckpointError, ImportError):
            arrays = _load(config, console)
            if out is None:
                out = f"runs/{Path(os.path.abspath(arrays.name)).stem}-{config.method}-{config.backend}-{config.seed}"
            folder = Path(out)
            if processes.index == 0:
                if checkpoint is None or not checkpoint.is_in(out):
                    _refuse_unfinished(out)
                folder = opened.enter_context(output_directory(out))
                _describe_data(console, arrays)
                if checkpoint is not None:
                    console.print(_describe(checkpoint, config), soft_wrap=True, markup=False)
                elif config.method == "dann":
                    with suppress(*by_all):
                        report = report_gradients(config, task=arrays)
                        last = config.coeff(config.steps)  # the first may be 0
                        line = f"Reversal at the schedule's last λ, {last:.4g}: {report}"
                        console.print(line, soft_wrap=True, markup=False)
        _run(console, config, arrays, folder, checkpoint, terminated, processes)


def _refuse_unfinished(out: str) -> None:
    left = unfinished(out)
    if left is not None:
        raise ConfigError(
            f"--out: {out} holds the checkpoint of a run that is not finished, at step {left.step}; expected"
            f" --resume {out}, or another directory."
        )


def _load(config: Config, console: Console) -> Task:
    """Load the data; one's own are read through, which takes the longer the more there are."""
    with console.status(f"Reading {escape(config.data or config.task)} …") as status:

        def follow(nbytes: int) -> None:
            status.update(f"Reading {escape(str(config.data))}: {nbytes / 2**20:,.0f} MiB")

        return load_data(config, follow)


def _describe_data(console: Console, task: Task) -> None:
    """Say what was found in a folder, and what was left out of it."""
    if task.layout and Path(task.name).is_dir():
        sizes = {"source": task.x_source, "target": task.x_target, "test": task.x_test}
        found = ", ".join(f"{len(x):,} {split}" for split, x in sizes.items() if x is not None)
        shape = f"{task.sample_shape}, {task.num_classes} classes"
        console.print(f"{task.name}: {task.layout}: {found} samples of shape {shape}", soft_wrap=True, markup=False)
    if task.skipped:
        console.print(f"Left out: {len(task.skipped)}, the first: {task.skipped[0]}", soft_wrap=True, markup=False)


def _describe(checkpoint: Checkpoint, config: Config) -> str:
    line = f"Going on from {checkpoint.folder}, at step {checkpoint.done.step} of {config.steps}"
    if config.backend != checkpoint.config.backend:
        return f"{line}, which {checkpoint.config.backend} has come to: {config.backend} rounds otherwise."
    now = versions(config)
    others = [
        f"{name} {version} (now {now.get(name)})"
        for name, version in checkpoint.versions.items()
        if version != now.get(name)
    ]
    return line + (f", written with {', '.join(others)}: the last bits may differ." if others else ".")


def _run(
    console: Console,
    config: Config,
    arrays: Task,
    folder: Path,
    checkpoint: Checkpoint | None,
    terminated: Callable[[], bool],
    processes: Processes,
) -> None:
    with Follower(console) as follower:
        follow = follower.run(f"{config.method}, {config.backend}", config.steps)
        together: Any = {"task": arrays, "stop": terminated, "processes": processes}
        result = run(config, progress=follow, out=folder, resume=checkpoint, **together)
        baseline = None
        try:
            if result.after.boundary is not None and config.method == "dann":
                # The paper's figure 2 sets adaptation beside no adaptation; on points in the plane that takes seconds.
                plain = replace(config, method="source-only", checkpoint_every=None, tensorboard=False)
                follow = follower.run("source-only, to compare", config.steps)
                # A run that goes on may have lost the file that it has started from.
                with suppress(FaultError, StoppedError, CheckpointError, RefusedByAllError):
                    baseline = run(plain, progress=follow, **together)
        except BaseException:  # Ctrl-C, say: the run is whole, and waits for nobody
            if processes.index == 0:
                save(result, folder)
            raise
    with processes.agree(ConfigError, WriteError):
        if processes.index == 0:
            _write(console, result, baseline, folder)


def _write(console: Console, result: Result, baseline: Result | None, folder: Path) -> None:
    from grl.report import draw_report  # matplotlib and scikit-learn take a second to import

    save(result, folder)  # not before the baseline: the model that both start from may be the one that is replaced
    draw_report(result, folder / "report.png", baseline)
    console.print(summarise(result, baseline))
    for line in remarks(result):
        console.print(line, soft_wrap=True, markup=False)
    for name in ("config.json", "metrics.json", "metrics.jsonl", "model.safetensors", "report.png"):
        console.print(str(folder / name), soft_wrap=True, markup=False)
