"""The name of a device, in the way that both backends read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from grl.experiment.config import ConfigError
from grl.experiment.processes import Processes

__all__ = ["DeviceError", "DeviceName", "parse_device"]


class DeviceError(ConfigError, LookupError):
    """The framework does not find the device. The message is one sentence.

    Args:
        name: the name in the settings.
        framework: "PyTorch" or "JAX".
        present: the names of the devices that it finds.
    """

    def __init__(self, name: str, framework: str, present: Iterable[str]) -> None:
        super().__init__(f"device: got {name!r}; expected one that {framework} finds here: {', '.join(present)}.")


class DeviceName(NamedTuple):
    """The two parts of a device's name.

    Args:
        kind: "cpu", "cuda", "gpu", …
        number: the digits after the colon, or "".
    """

    kind: str
    number: str


def parse_device(name: str, processes: Processes) -> DeviceName:
    """Split the name of a device into its kind and its number.

    Args:
        name: the framework's name of it: "cpu", "cuda", "cuda:1".
        processes: the processes of the run.

    Raises:
        ConfigError: several processes cannot share one device, so there the name has no number.

    Example:
        >>> parse_device("cuda:1", Processes())
        DeviceName(kind='cuda', number='1')
    """
    kind, _, number = name.partition(":")
    if processes.count > 1 and number:
        raise ConfigError(f"device: got {name!r} for {processes.count} processes; expected the name without a number.")
    return DeviceName(kind, number)
