"""What commands share: reading a number, and the directory that they write to."""

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
    """Read an option's value; typer's own refusal does not say what came."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"got {text!r}; expected an integer") from None


def real(text: str | float) -> float:
    """Read an option's value; typer's own refusal does not say what came."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"got {text!r}; expected a number") from None


@contextmanager
def output_directory(out: str) -> Iterator[Path]:
    """Make a directory and make sure that it can be written; if the block fails, remove it again if it was not there.

    So a command knows that it can write before its work begins, and leaves nothing behind if it does not end.

    Args:
        out: the directory, as the user wrote it.

    Yields:
        The same as a path.

    Raises:
        ConfigError: it cannot be made or written.
    """
    if not out or (os.path.exists(out) and not os.path.isdir(out)):  # not pathlib's, which raise on a name too long
        seen = f"{out} is a file" if out else "got no name"
        raise ConfigError(f"--out: {seen}; expected a directory, which is made if it is not there.")
    absent = [folder for folder in (Path(out), *Path(out).parents) if not os.path.exists(folder)]
    try:
        try:
            prepare_directory(out)
        except ConfigError as error:
            raise ConfigError(f"--out: {error}") from error
        yield Path(out)
    except BaseException:
        for folder in absent:  # the innermost first; one that holds something stays
            with suppress(OSError):
                folder.rmdir()
        raise
