"""How a process joins the others of its run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from grl.experiment.backend import import_processes
from grl.experiment.config import Config, ConfigError
from grl.experiment.processes import ALONE, Processes, launched

__all__ = ["join"]

_LAUNCHERS = {"torch": "torchrun", "jax": "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or srun"}


@contextmanager
def join(config: Config) -> Iterator[Processes]:
    """Join the other processes of a run, if the environment names any, and leave them at the end.

    Args:
        config: the settings. They must be the same in all processes, except for paths. Backend, device and timeout are
            read.

    Yields:
        The processes, for `train`; a process on its own gets `ALONE`.

    Raises:
        ConfigError: the environment belongs to another framework or is not complete, or the settings differ.
        ProcessLostError: another process does not come, or, in the block, ended or did not answer in time.
        ImportError: the backend is not installed.

    Example:
        >>> with join(Config(backend="torch")) as processes:
        ...     processes.index, processes.count
        (0, 1)
    """
    framework, _, count = launched()
    if framework is None:
        yield ALONE
        return
    if framework != config.backend:
        raise ConfigError(
            f"backend: got {config.backend!r} in one of {count} processes that are started for {framework!r};"
            f" expected {framework!r}, or a start by {_LAUNCHERS[config.backend]}."
        )
    with import_processes(config.backend).join(config) as processes:
        processes.check_same("settings", repr(replace(config, data=None, start=_digest(config.start))))
        yield processes


def _digest(path: str | None) -> str | None:
    try:
        return None if path is None else sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None  # loading the file reports the error
