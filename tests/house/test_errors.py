"""`except grl.GrlError` catches every error that grl defines for its callers."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import grl

# Raised and caught within one room, so no caller sees them: verdicts on a cell, and the end of a run at a layer.
CAUGHT_INSIDE = {"WrongError", "NotApplicableError", "ReachedError"}


def exceptions() -> dict[str, type[BaseException]]:
    """Return the exception classes with public names that grl defines, as far as its modules can be imported."""
    found: dict[str, type[BaseException]] = {}
    root = Path(grl.__file__).parent
    for info in pkgutil.walk_packages([str(root)], "grl.", onerror=lambda name: None):
        if info.name == "grl.__main__":
            continue
        try:
            module = importlib.import_module(info.name)
        except ImportError:
            continue  # needs a framework or an extra that is not installed
        for name, value in vars(module).items():
            is_own = inspect.isclass(value) and value.__module__ == info.name
            if is_own and issubclass(value, BaseException) and not name.startswith("_"):
                found[name] = value
    return found


def test_every_error_derives_from_the_base() -> None:
    found = exceptions()
    assert {"ConfigError", "DataError", "GrlError", "WriteError", "CheckError"} <= found.keys()
    strays = {name for name, error in found.items() if not issubclass(error, grl.GrlError)}
    assert strays <= CAUGHT_INSIDE


def test_an_error_that_reports_a_wrong_value_is_a_value_error() -> None:
    found = exceptions()
    for name in ("ConfigError", "RefusedByAllError", "DataError", "CheckpointError", "WriteError", "CheckError"):
        if name in found:
            assert issubclass(found[name], ValueError), name


def test_what_the_command_line_refuses_in_one_sentence_derives_from_the_base() -> None:
    pytest.importorskip("typer")
    from grl.cli.app import REFUSALS

    assert all(issubclass(error, grl.GrlError) for error in REFUSALS)
