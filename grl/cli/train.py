"""`grl train`: one run from the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from grl.cli.announcement import describe_data, describe_resumption, describe_reversal
from grl.cli.extras import require_training
from grl.cli.options import setting_options, text_option, with_options
from grl.cli.output import output_directory
from grl.cli.progress import Follower, make_console
from grl.cli.request import BESIDE_RESUME, Request, request_new, request_resumed
from grl.cli.signals import termination
from grl.cli.summary import remarks, summarise
from grl.datasets import DataError, Task
from grl.experiment import (
    CheckpointError,
    FaultError,
    Processes,
    Result,
    StoppedError,
    WeightsFileError,
    join,
    load_data,
    save,
)
from grl.experiment import train as run
from grl.experiment.checkpoint import unfinished
from grl.experiment.config import Config, ConfigError
from grl.experiment.processes import RefusedByAllError
from grl.experiment.setting import Panel, Value
from grl.files import WriteError

__all__ = ["train"]

_OUT = text_option(
    "out",
    "The directory for config.json, metrics.json, metrics.jsonl, model.safetensors and report.png, and for checkpoints;"
    " files of these names in it are replaced.",
    Panel.OUTPUT,
    metavar="DIR",
    default="runs/TASK-METHOD-BACKEND-SEED",
)
_RESUME = text_option(
    "resume",
    "Go on from the checkpoint in the directory of a run of either backend, with its settings. The only options"
    f" allowed beside it are {BESIDE_RESUME}. In the same backend, the final weights are bit for bit those of a run"
    " that was never interrupted.",
    Panel.TROUBLE,
    metavar="DIR",
    default="none",
)


@with_options([_OUT, *setting_options(Config), _RESUME])
def train(out: str | None = None, resume: str | None = None, **settings: Value) -> None:
    """Train a classifier on a labelled source domain for an unlabelled target domain, and score it on the target.

    Target labels are used for the final score only, and the score is that of the last step.

    Several processes share every batch and train the same model as one process would; only the first prints and writes.
    PyTorch: [bold]torchrun --nproc-per-node N -m grl train …[/bold] JAX: the same command N times, each with
    JAX_COORDINATOR_ADDRESS (HOST:PORT of the first), JAX_NUM_PROCESSES (N) and JAX_PROCESS_ID (0 to N - 1) in its
    environment, or through srun. For several machines see docs/scale-out.md.

    Example: [bold]grl train --backend jax --task moons --method dann --out runs/moons[/bold]
    """
    require_training("grl train")
    request = request_new(settings) if resume is None else request_resumed(resume, settings)
    with join(request.config) as processes, termination() as terminated:
        _train(_Session(request, processes, terminated), resume if out is None else out)
        if terminated():  # after the last step: everything is written
            raise typer.Exit(143)


@dataclass(frozen=True)
class _Session:
    """A run with its surroundings: the processes that share it, and whether SIGTERM has arrived."""

    request: Request
    processes: Processes
    terminated: Callable[[], bool]

    @property
    def config(self) -> Config:
        return self.request.config

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.processes.index == 0


def _train(session: _Session, out: str | None) -> None:
    console = make_console(silent=not session.is_first)
    with ExitStack() as opened:
        with session.processes.agree(ConfigError, DataError, CheckpointError, WeightsFileError, ImportError):
            data = _load(session.config, console)
            out = _default_directory(session.config, data) if out is None else out
            if session.is_first:
                opened.enter_context(_checked_directory(session.request, out))
                _announce(session, data, console)
        result, baseline = _run(session, data, Path(out), console)
        with session.processes.agree(ConfigError, WriteError):
            if session.is_first:
                _write(console, result, baseline, Path(out))


def _load(config: Config, console: Console) -> Task:
    """Load the data, with a line that shows how much has been read: the user's own may be large."""
    with console.status(f"Reading {escape(config.data or config.task)} …") as status:

        def follow(nbytes: int) -> None:
            status.update(f"Reading {escape(str(config.data))}: {nbytes / 2**20:,.0f} MiB")

        return load_data(config, follow)


def _default_directory(config: Config, data: Task) -> str:
    return f"runs/{Path(os.path.abspath(data.name)).stem}-{config.method}-{config.backend}-{config.seed}"


@contextmanager
def _checked_directory(request: Request, out: str) -> Iterator[None]:
    """Open the output directory, unless it holds an unfinished run that this one would overwrite."""
    if request.checkpoint is None or not request.checkpoint.is_in(out):
        left = unfinished(out)
        if left is not None:
            raise ConfigError(
                f"--out: {out} holds the checkpoint of a run that is not finished, at step {left.step}; expected"
                f" --resume {out}, or another directory."
            )
    with output_directory(out):
        yield


def _announce(session: _Session, data: Task, console: Console) -> None:
    config, checkpoint = session.config, session.request.checkpoint
    lines = list(describe_data(data))
    if checkpoint is not None:
        lines.append(describe_resumption(checkpoint, config))
    elif config.method == "dann":
        # Whatever prevents this report, such as a missing device, also stops the run. Several processes must refuse it
        # together, which they do when they train.
        refused_later = (ConfigError, CheckpointError, WeightsFileError) if session.processes.count > 1 else ()
        with suppress(*refused_later):
            lines.append(describe_reversal(config, data))
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _run(session: _Session, data: Task, folder: Path, console: Console) -> tuple[Result, Result | None]:
    """Train; return the run and, where a picture shows both, one without adaptation."""
    config, checkpoint = session.config, session.request.checkpoint
    with Follower(console) as follower:
        follow = follower.run(f"{config.method}, {config.backend}", config.steps)
        result = run(
            config,
            task=data,
            progress=follow,
            out=folder,
            resume=checkpoint,
            stop=session.terminated,
            processes=session.processes,
        )
        try:
            return result, _run_baseline(session, result, follower)
        except BaseException:  # such as Ctrl-C: the run itself is finished, and no other process waits
            if session.is_first:
                save(result, folder)
            raise


def _run_baseline(session: _Session, result: Result, follower: Follower) -> Result | None:
    """Train without adaptation, as in the paper's figure 2, where that takes seconds: on points in the plane."""
    if result.after.boundary is None or result.config.method != "dann":
        return None
    plain = replace(result.config, method="source-only", checkpoint_every=None, tensorboard=False)
    follow = follower.run("source-only, to compare", plain.steps)
    # The file that a resumed run once started from may be gone.
    with suppress(FaultError, StoppedError, CheckpointError, WeightsFileError, RefusedByAllError):
        return run(plain, task=result.task, progress=follow, stop=session.terminated, processes=session.processes)
    return None


def _write(console: Console, result: Result, baseline: Result | None, folder: Path) -> None:
    from grl.report import draw_report  # matplotlib and scikit-learn take a second to import

    save(result, folder)  # only after the baseline, which may have started from the model that this replaces
    draw_report(result, folder / "report.png", baseline)
    console.print(summarise(result, baseline))
    for line in remarks(result):
        console.print(line, soft_wrap=True, markup=False)
    for name in ("config.json", "metrics.json", "metrics.jsonl", "model.safetensors", "report.png"):
        console.print(str(folder / name), soft_wrap=True, markup=False)
