"""A setting is declared once: its check, its option, and its place in `grl train --help` follow from its field."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Annotated

import pytest

pytest.importorskip("typer")

import typer
from typer.testing import CliRunner

from grl.cli.app import explain
from grl.cli.options import setting_options, with_options
from grl.experiment.config import Config, ConfigError
from grl.experiment.setting import Choice, Flag, Panel, Setting, Value, Whole


@dataclass(frozen=True)
class Longer(Config):
    """Settings with one more field."""

    patience: Annotated[int | None, Setting(Whole(2, 9), "Steps to wait.", Panel.TROUBLE, "for ever")] = None


def run(words: list[str], config: type[Config] = Longer) -> tuple[str, dict[str, Value]]:
    """Run a command that has these settings as options; return what it prints, and what it receives."""
    received: dict[str, Value] = {}
    app = typer.Typer(rich_markup_mode="rich")

    @app.command()
    @with_options(setting_options(config))
    def command(**settings: Value) -> None:
        received.update(settings)

    output = CliRunner().invoke(app, words, env={"COLUMNS": "200"}).output
    return output, received


def test_one_more_field_is_one_more_option_with_its_help_and_its_place() -> None:
    output, _ = run(["--help"])
    panel = output[output.index(Panel.TROUBLE.value) :]
    assert re.search(r"--patience +N +Steps to wait\. \[default: for ever\]", panel)
    assert "--patience" not in run(["--help"], Config)[0]


def test_one_more_field_is_read_checked_and_kept() -> None:
    _, received = run(["--patience", "5", "--init", "x"])
    given = {name: value for name, value in received.items() if value is not None}
    assert given == {"patience": 5, "start": "x"}
    assert Longer(patience=5).patience == 5
    with pytest.raises(ConfigError, match=r"^patience: got 1; expected an integer from 2 to 9\."):
        Longer(patience=1)
    assert Longer.from_json(asdict(Longer(patience=5))) == Longer(patience=5)
    with pytest.raises(ConfigError, match=r"^config: missing or unknown settings: 'patience'; expected exactly"):
        Longer.from_json(asdict(Config()))


def test_a_field_that_declares_no_setting_is_refused() -> None:
    @dataclass(frozen=True)
    class Undeclared(Config):
        patience: int = 1

    with pytest.raises(TypeError, match=r"Undeclared\.patience: got 0 Setting; expected one"):
        Undeclared()


@pytest.mark.parametrize("name", [field.name for field in fields(Config)])
def test_each_setting_has_a_help_a_check_and_an_option(name: str) -> None:
    setting = Config.settings()[name]
    assert setting.help.endswith(".")
    default = getattr(Config(), name)
    assert default is None or setting.check(name, default) == default
    with pytest.raises(ConfigError, match=rf"^{name}: got <object object at \w+>; expected "):
        Config(**{name: object()})
    if setting.panel is not None:
        output, _ = run(["--help"], Config)
        metavar = "" if isinstance(setting.check, Flag) else re.escape(str(setting.check.metavar))
        assert re.search(rf"{setting.flag(name)} .*{metavar}", output)
        assert explain(ConfigError(f"{name}: got 1.")) == f"{setting.flag(name)}: got 1."


def test_choices_are_shown_as_the_metavar() -> None:
    assert Choice(("a", "b")).metavar == "a|b"
