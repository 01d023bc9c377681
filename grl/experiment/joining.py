"""How a process joins the others of its run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from grl.experiment.backend import import_backend
from grl.experiment.config import Config, ConfigError
from grl.experiment.processes import ALONE, Processes, launched

__all__ = ["join"]


@contextmanager
def join(config: Config) -> Iterator[Processes]:
    """Join the other processes of a run, if the environment says that there are any; leave them at the end.

    Args:
        config: the settings, which are the same in all but for paths; backend, device and timeout are read.

    Yields:
        The processes, to give to `train`; a process on its own gets `ALONE`.

    Raises:
        ConfigError: the environment is another framework's, is not complete, or the settings differ.
        ProcessLostError: another process does not come; or one has ended, or keeps this one waiting, in the block.
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
        how = {"torch": "torchrun", "jax": "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or srun"}
        raise ConfigError(
            f"backend: got {config.backend!r} in one of {count} processes that are started for {framework!r}; accepted"
            f" is {framework!r}, or a start by {how[config.backend]}."
        )
    with import_backend(config, "processes").join(config) as processes:
        processes.check_same("settings", repr(replace(config, data=None, start=_digest(config.start))))
        yield processes


def _digest(path: str | None) -> str | None:
    try:
        return None if path is None else sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None  # refused where it is loaded
