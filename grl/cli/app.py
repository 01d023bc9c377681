"""The commands, and what belongs to none of them."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Annotated

import typer

from grl import __version__
from grl.cli import demo, train
from grl.config import ConfigError
from grl.datasets import DataError
from grl.experiment import CheckpointError

__all__ = ["REFUSALS", "app"]

REFUSALS = (ConfigError, DataError, CheckpointError)
"""Errors whose text is one sentence for the user; the exit status is then 2."""

app = typer.Typer(
    help="Gradient reversal layers for PyTorch and JAX: train with them, and compare the two.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("demo")(demo.demo)


@app.callback(invoke_without_command=True)
def _grl(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions of grl, torch and jax, and exit.", is_eager=True)
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
            versions[name] = metadata.version(name)  # without importing it, which takes seconds
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["python"] = platform.python_version()
    return "\n".join(f"{name} {version}" for name, version in versions.items())
