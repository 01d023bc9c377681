"""`grl check`: every layer form under every transformation of its framework."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from grl.backends import FRAMEWORKS, installed_backends
from grl.check.check_layer import select, versions
from grl.check.form import STATUSES, Cell, Form
from grl.check.forms import CheckError, form_of, load_target, our_forms
from grl.check.matrix import check_form, counts, records
from grl.check.peers import PACKAGES, peer_forms
from grl.cli.progress import make_console
from grl.files import replacing

__all__ = ["check"]

_LONGEST_NAME = 200  # bytes; a file system takes 255, and a temporary name is longer than the final one
_SCHEMA = 1  # of the JSON file: it rises when a key is removed or changes its meaning
_STYLES = {"ok": "green", "refuses": "yellow", "n/a": "dim", "WRONG": "bold red"}


def check(
    target: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="Your layer instead of ours: a function of (x, coeff), or a class."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(metavar="torch|jax", help="The framework of the target. Without a target: every installed one."),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Check the layers of others as well: installed packages, and the code that articles print."
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only transformations of this (part of a) name; repeatable."),
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write versions, counts and cells there.")
    ] = None,
    png_file: Annotated[str | None, typer.Option("--png", metavar="FILE", help="Draw the table there.")] = None,
) -> int:
    """Check gradient reversal layers under every transformation of their frameworks, on the devices present.

    A cell is [bold]ok[/bold] where values, gradients, tangents and second derivatives are those of the declared
    Jacobian −λ·I. It [bold]refuses[/bold] where an exception is raised. It is [bold]WRONG[/bold] where the result
    differs and no exception is raised. The exit status is 1 if a cell is WRONG, or if a layer refuses everything.

    Example: [bold]grl check --target mypackage.layers:ReverseLayer --backend torch[/bold]
    """
    backends = _backends(target, backend)
    for option, path in (("--json", json_file), ("--png", png_file)):
        _require_writable(option, path)
    if "jax" in backends:
        _deal_out_two_cpus()
    names = _select(backends, only)
    forms = {name: _forms(name, target, peers) for name in backends if names[name]}
    console, known = make_console(), versions(backends, peers)
    for line in _header(known, [] if backend else list(FRAMEWORKS), backends if peers else ()):
        console.print(line, style="dim", markup=False, soft_wrap=True)
    cells = _run(console, forms, names)
    for name in forms:
        console.print(_table(name, [cell for cell in cells if cell.backend == name]))
    for reason in _reasons(cells):
        console.print(reason, soft_wrap=True)
    useless = _useless(cells)
    for form in useless:
        console.print(f"{form}: no cell is ok: it can be used nowhere.", markup=False, soft_wrap=True)
    _write(cells, known, json_file, png_file)
    return int(any(cell.status == "WRONG" for cell in cells) or bool(useless))


def _useless(cells: Sequence[Cell]) -> list[str]:
    """Return the forms that refuse every transformation checked, including the plain call ("eager")."""
    refusing = [cell for cell in cells if cell.transformation == "eager" and cell.status == "refuses"]
    totals = counts(cells)
    return [cell.form for cell in refusing if not totals[f"{cell.backend} {cell.form}"]["ok"]]


def _backends(target: str | None, backend: str | None) -> tuple[str, ...]:
    if backend is not None and backend not in FRAMEWORKS:
        raise CheckError(f"--backend: got {backend!r}; expected torch or jax.")
    if target is not None and backend is None:
        raise CheckError("--target: got no --backend; expected --backend torch or --backend jax beside it.")
    if backend is not None:
        return (backend,)
    if not installed_backends():
        raise CheckError('no framework is installed: pip install "grl[all]"')
    return installed_backends()


def _deal_out_two_cpus() -> None:
    """Make JAX split a CPU into two devices: with one device, nothing is sharded or gathered."""
    import_module("grl.jax_impl")  # its ImportError says what to install
    import jax

    configured = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    configured = configured or jax.config.jax_num_cpu_devices != -1  # type: ignore[attr-defined]  # made at run time
    if not configured:
        with suppress(RuntimeError):  # JAX is initialised already
            jax.config.update("jax_num_cpu_devices", 2)


def _require_writable(option: str, path: str | None) -> None:
    """Refuse a file that cannot be written before the work begins."""
    if path is None:
        return
    folder = os.path.dirname(path) or "."
    # pathlib's functions would raise on a name that is too long.
    writable = os.path.isdir(folder) and os.access(folder, os.W_OK)
    if not path or os.path.isdir(path) or not writable or len(os.fsencode(os.path.basename(path))) > _LONGEST_NAME:
        raise CheckError(f"{option}: got {path!r}; expected a file in a folder that can be written.")


def _select(backends: Sequence[str], only: Sequence[str] | None) -> dict[str, list[str]]:
    try:
        return select(backends, only or None)
    except CheckError as error:
        raise CheckError(f"--only: {str(error).removeprefix('transformations: ')}") from error


def _forms(backend: str, target: str | None, peers: bool) -> list[Form]:
    forms = our_forms(backend) if target is None else [_target(target, backend)]
    return forms + (peer_forms(backend) if peers else [])


def _target(target: str, backend: str) -> Form:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's module is in the working directory
    try:
        return form_of(load_target(target), backend)
    except CheckError as error:
        raise CheckError(f"--target: {str(error).removeprefix('target: ')}") from error


def _header(known: dict[str, str], wanted: Sequence[str], with_peers: Sequence[str]) -> Iterator[str]:
    """Yield the versions, and the names of packages that are not checked because they are not installed."""
    yield ", ".join(f"{name} {version}" for name, version in known.items())
    for backend in wanted:
        if backend not in installed_backends():
            yield f"{FRAMEWORKS[backend]} is not installed: its layers are not checked."
    absent = [name for backend in with_peers for name in PACKAGES[backend] if name not in known]
    if absent:
        yield f'Not installed: {", ".join(absent)}. To check them too: pip install "grl[peers]"'


def _run(console: Console, forms: dict[str, list[Form]], names: dict[str, list[str]]) -> list[Cell]:
    """Compute all cells, with a progress bar in a terminal and one line for each form elsewhere."""
    cells: list[Cell] = []
    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn())
    live = console.is_terminal and not console.is_dumb_terminal
    with Progress(*columns, console=console, expand=True, transient=True, disable=not live) as progress:
        bar = progress.add_task("", total=sum(len(forms[name]) * len(names[name]) for name in forms))
        for backend, form in ((name, form) for name, listed in forms.items() for form in listed):
            for name in names[backend]:
                progress.update(bar, description=f"{FRAMEWORKS[backend]}, {form.name}: {name}")
                cells += check_form(form, [name])
                progress.advance(bar)
            if not live:
                console.print(f"{FRAMEWORKS[backend]}, {form.name}: {len(names[backend])} checked", markup=False)
    return cells


def _table(backend: str, cells: Sequence[Cell]) -> Table:
    forms = list(dict.fromkeys(cell.form for cell in cells))
    statuses = {(cell.form, cell.transformation): cell.status for cell in cells}
    table = Table(title=FRAMEWORKS[backend], box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("transformation", no_wrap=len(forms) <= 4)
    for form in forms:
        table.add_column(Text(form.replace("_", "_\n", 1)), justify="center", overflow="fold")
    for name in dict.fromkeys(cell.transformation for cell in cells):
        table.add_row(Text(name), *(Text(statuses[form, name], _STYLES[statuses[form, name]]) for form in forms))
    table.add_section()
    totals = counts(cells)
    for status in STATUSES:
        table.add_row(Text(status), *(Text(str(totals[f"{backend} {form}"][status])) for form in forms), style="bold")
    return table


def _reasons(cells: Sequence[Cell]) -> list[Text]:
    """Return the reasons, WRONG first, then refusals. Forms with the same transformation and reason share a line."""
    lines = []
    for status in ("WRONG", "refuses", "n/a"):
        by_reason: dict[tuple[str, str, str], list[str]] = {}
        for cell in cells:
            if cell.status == status:
                by_reason.setdefault((cell.backend, cell.transformation, cell.reason), []).append(cell.form)
        for (backend, transformation, reason), forms in by_reason.items():
            line = Text(status, _STYLES[status])
            lines.append(
                line.append(f" {FRAMEWORKS[backend]}, {transformation}", "bold").append(
                    f" ({', '.join(forms)}): {reason}", "default"
                )
            )
    return lines


def _write(cells: Sequence[Cell], known: dict[str, str], json_file: str | None, png_file: str | None) -> None:
    if json_file is not None:
        figures = {"schema": _SCHEMA, "versions": known, "counts": counts(cells), "cells": records(cells)}
        try:
            with replacing(json_file) as temporary:
                temporary.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise CheckError(f"--json: {json_file} cannot be written: {error.strerror}.") from error
    if png_file is not None:
        from grl.check.pictures import draw_matrix  # matplotlib takes a second to import

        draw_matrix(cells, known, png_file)
