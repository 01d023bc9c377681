"""The matrix of layer forms and transformations: the rows of each backend, and how a cell is computed."""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Protocol, cast

from grl.check.form import STATUSES, Cell, Form, NotApplicableError, Transformation, WrongError

__all__ = ["check_form", "counts", "records", "sample_input", "transformations"]


class Rows(Protocol):
    """A module of transformations of one backend."""

    TRANSFORMATIONS: tuple[Transformation, ...]
    """In the order of the table."""


class DerivativeRows(Rows, Protocol):
    """The first of a backend's modules, on which the others build."""

    def the_x(self) -> object:
        """Return a fresh array of the framework, float32 of shape (4, 3)."""


_ROWS = {"torch": ("derivatives", "tensors", "programs"), "jax": ("derivatives", "programs", "modules")}


def _rows(backend: str, part: str) -> Rows:
    """Return a backend's module: the one place in which the check picks a backend by its name."""
    importlib.import_module(f"grl.{backend}_impl")  # raises an ImportError that names the extra to install
    return cast(Rows, importlib.import_module(f"grl.check.{backend}_{part}"))


def transformations(backend: str) -> dict[str, Transformation]:
    """Return the transformations of a backend by name, in the order of the table.

    Args:
        backend: "torch" or "jax", which is then imported.

    Raises:
        ImportError: it is not installed.
    """
    rows = [row for part in _ROWS[backend] for row in _rows(backend, part).TRANSFORMATIONS]
    return {row.name: row for row in rows}


def sample_input(backend: str) -> object:
    """Return the input of most transformations, an array of one framework.

    Args:
        backend: "torch" or "jax", which is then imported.

    Returns:
        float32, of shape (4, 3).
    """
    return cast(DerivativeRows, _rows(backend, "derivatives")).the_x()


def check_form(form: Form, names: Iterable[str] | None = None) -> Iterator[Cell]:
    """Yield the cell of every transformation for a form.

    Args:
        form: the layer to check.
        names: the transformations; all by default.

    Raises:
        KeyError: there is no transformation of that name.
    """
    known = transformations(form.backend)
    for name in known if names is None else names:
        status, reason = _judge(known[name], form)
        yield Cell(form.backend, form.name, name, status, reason)


def counts(cells: Iterable[Cell]) -> dict[str, dict[str, int]]:
    """Return, by "backend form", how many cells have each status."""
    counters: dict[str, Counter[str]] = {}
    for cell in cells:
        counters.setdefault(f"{cell.backend} {cell.form}", Counter())[cell.status] += 1
    return {form: {status: counter[status] for status in STATUSES} for form, counter in counters.items()}


def records(cells: Iterable[Cell]) -> list[dict[str, str]]:
    """Return the cells as the JSON file stores them."""
    return [asdict(cell) for cell in cells]


def _judge(transformation: Transformation, form: Form) -> tuple[str, str]:
    with _quietly():
        try:
            transformation.examine(form)
        except WrongError as error:
            return "WRONG", str(error)
        except NotApplicableError as error:
            return "n/a", str(error)
        except (Exception, SystemExit) as error:  # any exception counts as a refusal
            return "refuses", f"{type(error).__name__}: {_first_words(error)}"
    return "ok", ""


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence warnings and logging while a cell is computed: only returned values and exceptions are results.

    Both are settings of the process: other threads are silenced as well.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_words(error: BaseException, longest: int = 160) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(error).split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"
