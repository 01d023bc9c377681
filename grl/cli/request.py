"""The run that a command line asks for: a new one, or one that goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from grl.experiment import load_checkpoint
from grl.experiment.checkpoint import Checkpoint
from grl.experiment.config import Config, ConfigError
from grl.experiment.setting import Value

__all__ = ["BESIDE_RESUME", "Request", "request_new", "request_resumed"]

_MAY_CHANGE = {name: setting for name, setting in Config.settings().items() if setting.may_change_on_resume}
BESIDE_RESUME = ", ".join(setting.flag(name) for name, setting in _MAY_CHANGE.items()) + " and --out"
"""The options that may stand beside --resume, for a message."""


@dataclass(frozen=True)
class Request:
    """A run to be started.

    Args:
        config: its settings.
        checkpoint: where it goes on; None for a new run.
    """

    config: Config
    checkpoint: Checkpoint | None = None


def request_new(options: Mapping[str, Value]) -> Request:
    """Return a new run with the settings recommended for its task, unless an option says otherwise.

    Args:
        options: the value of each setting, by the name of its field; None where it was not given.

    Raises:
        ConfigError: both a task and data are given, or a setting cannot be used.
    """
    settings: dict[str, Any] = dict(options)
    task = settings.pop("task", None)
    if settings.get("data") is not None:
        if task is not None:
            raise ConfigError("--task and --data: got both; expected one of them.")
        task = "data"
    return Request(Config.recommended(Config.task if task is None else task, **settings))


def request_resumed(folder: str, options: Mapping[str, Value]) -> Request:
    """Return the run that goes on from the checkpoint in a folder, with its settings.

    Args:
        folder: the directory of the run that was interrupted.
        options: the value of each setting, by the name of its field; None where it was not given.

    Raises:
        ConfigError: an option is given that cannot change within a run, or its value cannot be used.
        CheckpointError: the checkpoint cannot be used.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for name in sorted(given.keys() - _MAY_CHANGE.keys()):
        option = Config.settings()[name].flag(name)
        raise ConfigError(f"--resume: got {option} beside it; expected {BESIDE_RESUME}.")
    checkpoint = load_checkpoint(folder)
    return Request(replace(checkpoint.config, **given), checkpoint)
