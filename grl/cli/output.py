"""The numbers that commands read, and the directory that they write to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from grl.experiment import prepare_directory
from grl.experiment.config import ConfigError

__all__ = ["integer", "output_directory", "real"]


def integer(text: str | int) -> int:
    """Return an option's value as an integer; typer's own message would not show the value."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"got {text!r}; expected an integer") from None


def real(text: str | float) -> float:
    """Return an option's value as a number; typer's own message would not show the value."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"got {text!r}; expected a number") from None


@contextmanager
def output_directory(out: str) -> Iterator[Path]:
    """Make a directory and check that it can be written. If the block fails, remove it, unless it existed before.

    A command thereby knows before its work begins that it can write, and leaves nothing behind if it fails.

    Args:
        out: the directory, as the user wrote it.

    Yields:
        The directory as a path.

    Raises:
        ConfigError: it cannot be made or written.
    """
    # Of os.path and not of pathlib, whose methods raise on a name that is too long.
    if not out or (os.path.exists(out) and not os.path.isdir(out)):
        problem = f"{out} is a file" if out else "got no name"
        raise ConfigError(f"--out: {problem}; expected a directory, which is made if it does not exist.")
    absent = [folder for folder in (Path(out), *Path(out).parents) if not os.path.exists(folder)]
    try:
        try:
            prepare_directory(out)
        except ConfigError as error:
            raise ConfigError(f"--out: {error}") from error
        yield Path(out)
    except BaseException:
        for folder in absent:  # the innermost first; one that is not empty stays
            with suppress(OSError):
                folder.rmdir()
        raise
