"""The options of `grl train`, made from the settings that `Config` declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import Any, TypeVar

import typer

from grl.cli.output import integer, real
from grl.datasets import TASKS
from grl.experiment.config import Config
from grl.experiment.setting import Flag, Number, Panel, Setting, Value, Whole

__all__ = ["setting_options", "text_option", "with_options"]

Command = TypeVar("Command", bound=Callable[..., None])


def with_options(options: Iterable[Parameter]) -> Callable[[Command], Command]:
    """Give a function of keywords the signature from which typer makes its options.

    Args:
        options: from `setting_options` and `text_option`. The help text has the panels in the order of `Panel`, and
            the options of a panel in the order given.
    """
    panels = [panel.value for panel in Panel]
    parameters = sorted(options, key=lambda option: panels.index(option.default.rich_help_panel))

    def decorate(command: Command) -> Command:
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        vars(command)["__signature__"] = Signature(parameters)
        return command

    return decorate


def setting_options(config: type[Config]) -> list[Parameter]:
    """Return an option for each setting that has a panel, in the order of the fields.

    An option that is not given is None: the setting recommended for the task stays.
    """
    return [
        _setting_option(config, name, setting)
        for name, setting in config.settings().items()
        if setting.panel is not None
    ]


def text_option(name: str, help: str, panel: Panel, metavar: str, default: str) -> Parameter:
    """Return an option that takes text and is no setting; `default` is its default in words."""
    option = typer.Option(None, f"--{name}", metavar=metavar, **_help(help, panel, default))
    return Parameter(name, Parameter.KEYWORD_ONLY, default=option, annotation=str | None)


def _setting_option(config: type[Config], name: str, setting: Setting) -> Parameter:
    assert setting.panel is not None
    check = setting.check
    parser: Callable[..., Value] | None = None
    kind: type = str
    if isinstance(check, Whole):
        kind, parser = int, integer
    elif isinstance(check, Number):
        kind, parser = float, real
    elif isinstance(check, Flag):
        kind = bool
    shared = _help(setting.help, setting.panel, setting.default or _defaults(config, name))
    option = typer.Option(None, setting.flag(name), metavar=check.metavar, parser=parser, **shared)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=option, annotation=kind | None)


def _help(text: str, panel: Panel, default: str) -> dict[str, Any]:
    help = f"{text} [dim]\\[default: {default}][/dim]"
    return {"help": help, "rich_help_panel": panel.value, "show_default": False}


def _defaults(config: type[Config], name: str) -> str:
    """Return a setting's default, and that of each task for which another value is recommended."""
    general = getattr(config, name)
    by_task = {task: getattr(config.recommended(task), name) for task in TASKS if name != "task"}
    return "; ".join([f"{general}", *(f"{task}: {value}" for task, value in by_task.items() if value != general)])
