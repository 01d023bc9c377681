"""The processes of a run, seen from one of them: its index, its share of the batch, and how all refuse as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from grl.errors import GrlError
from grl.experiment.config import ConfigError

__all__ = ["ALONE", "Place", "ProcessLostError", "Processes", "RefusedByAllError", "check_shares", "launched"]

# Each launcher of processes, with its variables for a process's index and for the number of processes, in the order of
# precedence.
_LAUNCHERS = (
    ("torch", "RANK", "WORLD_SIZE"),  # torchrun
    ("jax", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),  # with JAX_COORDINATOR_ADDRESS
    ("jax", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun
)


class RefusedByAllError(ConfigError):
    """A refusal that every process of the run raises at the same point. The message is one sentence."""


class ProcessLostError(GrlError, RuntimeError):
    """Another process of the run has ended, or has not answered in time. The message is one sentence."""

    @classmethod
    def of(cls, index: int, count: int, timeout: int, error: Exception) -> ProcessLostError:
        """Return the error of a process whose collective has failed.

        Args:
            index: this process.
            count: the number of processes.
            timeout: the seconds that a process waits for another.
            error: the framework's error; its first line ends the message.
        """
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        place = f"process {index} of {count}"
        return cls(f"{place}: another process ended, or did not answer within {timeout} s (--timeout): {reason}")


def _alone(text: str) -> list[str]:
    """Return the texts of all processes, where there is only one."""
    return [text]


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together, seen from one of them.

    Args:
        index: the index of this process, from 0. Only process 0 writes files and shows progress.
        count: the number of processes.
        exchange: a function from this process's text to the texts of all, by index. Every process must call it.

    Example:
        >>> Processes(index=1, count=4).part(64)
        slice(16, 32, None)
    """

    index: int = 0
    count: int = 1
    exchange: Callable[[str], list[str]] = _alone

    def part(self, size: int) -> slice:
        """Return this process's share of `size` samples; `size` is a multiple of `count`."""
        share = size // self.count
        return slice(self.index * share, (self.index + 1) * share)

    @contextmanager
    def agree(self, *refusals: type[Exception]) -> Iterator[None]:
        """Turn a refusal in one process into a refusal in all, so that none trains on without the others.

        Args:
            refusals: the exceptions whose text is a sentence for the user. The block must not run a collective.

        Raises:
            RefusedByAllError: the refusal of the first process that had one; a process alone raises its own error.
        """
        refusal = ""
        try:
            yield
        except refusals as error:
            if self.count == 1:
                raise
            refusal = str(error)
        texts = self.exchange(refusal)
        for index, text in enumerate(texts):
            if text and all(other == text for other in texts):
                raise RefusedByAllError(text)
            if text:
                raise RefusedByAllError(f"{text.rstrip('.')} (in process {index} of {self.count}).")

    def check_same(self, name: str, value: str) -> None:
        """Check that a value is the same in all processes.

        Args:
            name: the name of the value, for the message.
            value: this process's value.

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


def check_shares(batch_size: int, count: int, owners: str) -> None:
    """Check that a batch has equal shares. Only then is the mean of the shares' means the mean of the batch.

    Args:
        batch_size: the number of samples.
        count: the number of shares.
        owners: who gets the shares, in the plural, for the message.

    Raises:
        ConfigError: the batch size is not a multiple of the number of shares.
    """
    if batch_size % count:
        raise ConfigError(f"batch_size: got {batch_size} for {count} {owners}; expected a multiple of {count}.")


class Place(NamedTuple):
    """The place of this process among those that a launcher has started.

    Args:
        framework: "torch" or "jax"; None if the process is alone.
        rank: its index, from 0.
        size: the number of processes.
    """

    framework: str | None
    rank: int
    size: int


def launched() -> Place:
    """Return the place of this process according to the environment.

    For PyTorch these are RANK and WORLD_SIZE, which torchrun sets. For JAX they are JAX_PROCESS_ID and
    JAX_NUM_PROCESSES, or those of SLURM's job step (`srun`). One process of one is alone.

    Raises:
        ConfigError: a variable is missing or not a number.

    Example:
        >>> launched()
        Place(framework=None, rank=0, size=1)
    """
    for framework, index, count in _LAUNCHERS:
        if _number(count, "1") > 1:
            return Place(framework, _number(index), _number(count))
    return Place(None, 0, 1)


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} in the environment: got {text!r}; expected an integer.") from None
