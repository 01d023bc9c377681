"""What a run keeps in its directory while it trains: the history, checkpoints, and a step that is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from os import PathLike
from pathlib import Path

from grl.datasets import Task
from grl.experiment.backend import build_architecture, import_backend, versions
from grl.experiment.batching import batches, fingerprint
from grl.experiment.checkpoint import Checkpoint, CheckpointError, Done, remove_checkpoint, save_checkpoint
from grl.experiment.checkpoint_checks import check_state
from grl.experiment.config import Config, ConfigError
from grl.experiment.faults import Fault, FaultError, save_fault
from grl.experiment.files import EVENTS_PREFIX, FAULT_FILES
from grl.experiment.log import Log
from grl.experiment.loop import Chunk
from grl.experiment.processes import Processes
from grl.experiment.record import Record
from grl.experiment.trainer import Trainer

__all__ = ["Folder", "Keeper", "Run", "start"]

Folder = str | PathLike[str]


@dataclass(frozen=True)
class Run:
    """The parts of a run that stay the same from its first step to its last.

    Args:
        config: the settings.
        task: the data.
        out: the run's directory, or None.
        processes: the processes that train together.
    """

    config: Config
    task: Task
    out: Folder | None
    processes: Processes

    @property
    def written(self) -> Folder | None:
        """The run's directory in the one process that writes files, and None in the others."""
        return self.out if self.processes.index == 0 else None


class Keeper:
    """The files of one run. Every process of the run has a keeper and calls it; the first one alone writes.

    Args:
        run: the run.
        data: a description of the data, for checkpoints.
        done: how far the run has come.
        log: the history, open.
    """

    def __init__(self, run: Run, data: Mapping[str, object], done: Done, log: Log) -> None:
        self.run = run
        self.done = done
        self.checkpoint_step = done.step or None
        self._data = data
        self._log = log

    @property
    def records(self) -> list[Record]:
        """The history so far."""
        return self._log.records

    def keep(self, chunk: Chunk, trainer: Trainer, *, stopping: bool) -> None:
        """Log a chunk, and write a checkpoint after it if one is due or the run stops there.

        Args:
            chunk: the steps that were run.
            trainer: the trainer, in the state after them.
            stopping: whether the run stops there.

        Raises:
            ConfigError, CheckpointError: a file cannot be written.
        """
        self.done = chunk.done
        config = self.run.config
        due = self.run.out is not None and (stopping or _is_due(self.done.step, config))
        state = trainer.state() if due else {}  # all processes gather it together, so not inside of `agree`
        with self.run.processes.agree(ConfigError, CheckpointError):
            self._log.append([record for record in chunk.records if _is_logged(record["step"], config)])
            if due and self.run.written is not None:
                self._log.sync()
                history = tuple(self._log.records)
                checkpoint = Checkpoint(config, self.done, self._data, versions(config), state, history)
                save_checkpoint(self.run.written, checkpoint, self._log.digest)
        if due:
            self.checkpoint_step = self.done.step

    def fault(self, fault: Fault) -> FaultError:
        """Keep a step that would have ruined the weights; return the error that ends the run.

        Args:
            fault: the step; each of several processes has its share of the batch.

        Raises:
            ConfigError: a file cannot be written.
        """
        with self.run.processes.agree(ConfigError):
            if self.run.processes.count > 1:
                fault = _completed(fault, self.run)
            if self.run.written is not None:
                save_fault(fault, self.run.written)
        return FaultError(fault, self.run.out)


@contextmanager
def start(run: Run, trainer: Trainer, resume: Checkpoint | None) -> Iterator[Keeper]:
    """Bring the trainer to the checkpoint, if there is one, clear the run's directory, and open its history.

    Args:
        run: the run.
        trainer: the trainer at its initial weights.
        resume: the checkpoint to continue from.

    Yields:
        The keeper; its files are open until the end of the block.

    Raises:
        ConfigError: the processes have different data or checkpoints, or a file cannot be written.
        CheckpointError: the checkpoint does not fit the network, the optimiser or the data.
        ImportError: event files are requested, and tensorboard is not installed.
    """
    processes, done, history = run.processes, Done(), list[Record]()
    data = fingerprint(run.task, run.config)
    processes.check_same("data", str(data))
    resumed = "none" if resume is None else f"step {resume.done.step}: {resume.digest()}"
    processes.check_same("weights to go on from", resumed)
    state = {} if resume is None else trainer.state()  # all processes gather it together, so not inside of `agree`
    with ExitStack() as opened:
        with processes.agree(ConfigError, CheckpointError, ImportError):
            if run.written is not None and run.config.tensorboard:
                import_module("grl.experiment.events")  # if TensorBoard is missing, refuse before files are removed
            if resume is not None:
                check_state(resume, state, data)
                trainer.load_state(resume.state)
                done, history = resume.done, list(resume.history)
            if run.written is not None:
                _clear(Path(run.written), keep_run=resume is not None and resume.is_in(run.written))
            log = opened.enter_context(Log(run.written, history, run.config.tensorboard))
        yield Keeper(run, data, done, log)


def _is_due(step: int, config: Config) -> bool:
    every = config.checkpoint_every
    return every is not None and (step % every == 0 or step == config.steps)


def _is_logged(step: int, config: Config) -> bool:
    return step % config.log_every == 0 or step == config.steps


def _completed(fault: Fault, run: Run) -> Fault:
    """Return a fault of several processes with the whole batch, and with the report of its gradients."""
    batch = next(batches(run.task, run.config, fault.step - 1))
    architecture = build_architecture(run.task, run.config)
    alone = import_backend(run.config.backend).Trainer(architecture, run.config, fault.weights)
    report = alone.report_gradients(*batch, fault.coeff) if run.config.method == "dann" else None
    return replace(fault, batch=batch, report=report)


def _clear(out: Path, keep_run: bool) -> None:
    """Remove files of an earlier run that this one may not write again; of a resumed run, only those of its fault."""
    old = [out / name for name in FAULT_FILES]
    if not keep_run:
        remove_checkpoint(out)
        old += out.glob(f"{EVENTS_PREFIX}*")
    for path in old:
        path.unlink(missing_ok=True)
