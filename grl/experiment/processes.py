"""A run of several processes as one of them sees it: which it is, what its part is, and how all refuse as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from grl.errors import GrlError
from grl.experiment.config import ConfigError

__all__ = ["ALONE", "ProcessLostError", "Processes", "RefusedByAllError", "check_shares", "launched"]

# What starts processes, and its names of a process's index and of their number; what comes first counts.
_LAUNCHERS = (
    ("torch", "RANK", "WORLD_SIZE"),  # torchrun
    ("jax", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),  # with JAX_COORDINATOR_ADDRESS
    ("jax", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun
)


class RefusedByAllError(ConfigError):
    """A refusal that every process of the run raises in the same place. The message is one sentence."""


class ProcessLostError(GrlError, RuntimeError):
    """Another process of the run has ended, or has kept this one waiting for too long. The message is one sentence."""


def _alone(text: str) -> list[str]:
    """Give this process's text to all, where it is all."""
    return [text]


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together, as one of them sees them.

    Args:
        index: this one, from 0. The first alone writes files and shows progress.
        count: how many there are.
        exchange: this one's text -> the texts of all, by index. All call it, or it waits.

    Example:
        >>> Processes(index=1, count=4).part(64)
        slice(16, 32, None)
    """

    index: int = 0
    count: int = 1
    exchange: Callable[[str], list[str]] = _alone

    def part(self, size: int) -> slice:
        """Return which of `size` samples are this process's; `size` is a multiple of `count`."""
        share = size // self.count
        return slice(self.index * share, (self.index + 1) * share)

    @contextmanager
    def agree(self, *refusals: type[Exception]) -> Iterator[None]:
        """Make a refusal in one process a refusal in all: nobody trains on with those that have ended.

        Args:
            refusals: the exceptions whose text is a sentence for the user. No collective runs in the block.

        Raises:
            RefusedByAllError: the refusal of the first process that had one; a process alone raises its own.
        """
        text = ""
        try:
            yield
        except refusals as error:
            if self.count == 1:
                raise
            text = str(error)
        texts = self.exchange(text)
        for index, text in enumerate(texts):
            if text:
                if any(other != text for other in texts):
                    text = f"{text.rstrip('.')} (in process {index} of {self.count})."
                raise RefusedByAllError(text)

    def check_same(self, name: str, value: str) -> None:
        """Make sure that something is the same in all processes.

        Args:
            name: what it is, for the message.
            value: this process's.

        Raises:
            RefusedByAllError: another process has another value.
        """
        for index, text in enumerate(self.exchange(value)):
            if text != value:
                raise RefusedByAllError(
                    f"{name}: process {index} of {self.count} has others than process {self.index}; expected one"
                    " command with the same files for all."
                )


ALONE = Processes()
"""The one process of most runs."""


def check_shares(batch_size: int, count: int, what: str) -> None:
    """Make sure that a batch can be dealt out in equal shares: only then is the mean of their means the batch's mean.

    Args:
        batch_size: samples.
        count: shares.
        what: who gets them, in the plural, for the message.

    Raises:
        ConfigError: it cannot.
    """
    if batch_size % count:
        raise ConfigError(f"batch_size: got {batch_size} for {count} {what}; expected a multiple of {count}.")


def launched() -> tuple[str | None, int, int]:
    """Return what the environment says of this process: (framework, index, count); (None, 0, 1) if it is alone.

    PyTorch's is RANK and WORLD_SIZE, which torchrun sets; JAX's is JAX_PROCESS_ID and JAX_NUM_PROCESSES, or SLURM's
    job step (`srun`). One process of one is alone.

    Raises:
        ConfigError: a variable is missing or no number.

    Example:
        >>> launched()
        (None, 0, 1)
    """
    for framework, index, count in _LAUNCHERS:
        if _number(count, "1") > 1:
            return framework, _number(index), _number(count)
    return None, 0, 1


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} in the environment: got {text!r}; expected an integer.") from None
