"""The commands, the option `--version`, and the errors that become one sentence on stderr."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Annotated

import typer

from grl import __version__
from grl.cli import check, demo, port_check, train
from grl.datasets import DataError
from grl.experiment import CheckpointError, WeightsFileError
from grl.experiment.config import Config, ConfigError
from grl.files import WriteError
from grl.parity import CheckError, PortError

__all__ = ["REFUSALS", "app", "explain"]

REFUSALS = (ConfigError, DataError, CheckpointError, WeightsFileError, CheckError, PortError, WriteError)
"""Errors whose text is one sentence for the user. The exit status is then 2."""


def explain(error: Exception) -> str:
    """Return the sentence of a refusal; a setting's name at its beginning becomes the name of its option."""
    name, colon, rest = str(error).partition(":")
    setting = Config.settings().get(name)
    if isinstance(error, ConfigError) and setting is not None:
        return f"{setting.flag(name)}{colon}{rest}"
    return str(error)


app = typer.Typer(
    help="Gradient reversal layers for PyTorch and JAX: train with them, check them, and compare the two frameworks.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("demo")(demo.demo)
app.command("check")(check.check)
app.command("port-check")(port_check.port_check)


@app.callback(invoke_without_command=True)
def _grl(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the versions of grl, torch, jax and Python, and exit.", is_eager=True),
    ] = False,
) -> None:
    if version:
        typer.echo(_versions())
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _versions() -> str:
    versions = {"grl": __version__, "torch": None, "jax": None}
    for name in ("torch", "jax"):
        try:
            versions[name] = metadata.version(name)  # importing it would take seconds
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["python"] = platform.python_version()
    return "\n".join(f"{name} {version}" for name, version in versions.items())
