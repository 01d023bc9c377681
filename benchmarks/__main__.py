"""`python -m benchmarks`: the speed and the memory of each form, compared with the least possible."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks import article, compare, compile, layer, memory, op, scale, scale_out, step
from benchmarks.draw import draw
from benchmarks.form import Backend
from benchmarks.forms import backends
from benchmarks.machine import count_units, describe, find_device
from benchmarks.record import Row, load, relate, save
from benchmarks.settings import Settings, Tell
from benchmarks.show import tables
from benchmarks.targets import targets

BENCHMARKS: dict[str, Callable[[Sequence[Backend], Settings, Tell], list[Row]]] = {
    "op": op.run,
    "article": article.run,
    "memory": memory.run,
    "compile": compile.run,
    "step": step.run,
    "layer": layer.run,
    "scale": scale.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write, or compare two written runs; return the exit status."""
    options = _parse(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    try:
        return {"compare": _compare, "scale-out": _scale_out, "measure": _measure}[options.command](options, console)
    except (OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def _measure(options: argparse.Namespace, console: Console) -> int:
    settings = Settings(find_device(options.device), options.effort)
    found, missing = backends(settings.device)
    machine = describe(settings.device) | {"not measured": missing}
    options.out.mkdir(parents=True, exist_ok=True)  # fail now, not after an hour of measuring
    console.print(f"{settings.device}: {machine['gpu'] or machine['processor']}, {machine['versions']}", soft_wrap=True)
    for name, why in missing.items():
        console.print(f"{name} is not measured: {why}", soft_wrap=True)
    rows: list[Row] = []
    with _Quiet(), _progress(console) as progress:
        for name in options.only:
            bar = progress.add_task(name)

            def tell(done: int, total: int, what: str, bar: TaskID = bar, name: str = name) -> None:
                progress.update(bar, completed=done, total=total, description=f"{name}: {what}")

            rows += BENCHMARKS[name](found, settings, tell)
            progress.remove_task(bar)
    relate(rows)
    for part in tables(rows):
        console.print(part)
    aimed_at = targets(rows)
    for target in aimed_at:
        console.print(str(target), soft_wrap=True)
    save(options.out / "results.json", machine, rows, [target.to_dict() for target in aimed_at])
    for path in (options.out / "results.json", *draw(rows, options.out)):
        console.print(str(path), soft_wrap=True, markup=False)
        if options.keep:
            name = f"{settings.device}-{machine['date'][:10]}"
            kept = f"{name}.json" if path.suffix == ".json" else f"{name}-{path.name}"
            shutil.copy(path, Path(__file__).parent / "results" / kept)
    return 0


def _compare(options: argparse.Namespace, console: Console) -> int:
    runs = [load(path) for path in (options.before, options.after)]
    for machine, _ in runs:
        console.print(
            f"{machine['date']}, {machine['revision']}, {machine['gpu'] or machine['processor']}", soft_wrap=True
        )
    found = list(compare.changes(*(rows for _, rows in runs)))
    if not found:
        raise ValueError(f"{options.before} and {options.after} have no row in common")
    moved = [change for change in found if not change.is_noise]
    if moved:
        console.print(compare.table(moved))
    worse = [change for change in moved if change.factor > options.bound]
    console.print(
        f"{len(moved)} of {len(found)} rows moved by more than the noise, {len(worse)} of them by more than a factor of"
        f" {options.bound:g} to the worse."
    )
    return 1 if worse else 0


def _scale_out(options: argparse.Namespace, console: Console) -> int:
    device = find_device(options.device)
    machine = describe(device)
    counts = options.processes or [2**power for power in range(1, 10) if 2**power <= count_units(device)] or [2]
    options.out.mkdir(parents=True, exist_ok=True)
    with _progress(console) as progress:
        bar = progress.add_task("scale-out")

        def tell(done: int, total: int, what: str) -> None:
            progress.update(bar, completed=done, total=total, description=f"scale-out: {what}")

        rows = scale_out.run(device, counts, options.rounds, tell)
    for table in scale_out.tables(rows):
        console.print(table)
    path = options.out / "scale-out.json"
    save(path, machine, rows, [])
    console.print(str(path), soft_wrap=True, markup=False)
    if options.keep:
        name = f"scale-out-{device}-{machine['date'][:10]}.json"
        shutil.copy(path, Path(__file__).parent / "results" / name)
    return 0


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class _Quiet(warnings.catch_warnings):
    """Keep warnings of other packages' layers, and of failed compilations by `torch.compile`, out of the tables."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.getLogger("torch").level
        logging.getLogger("torch").setLevel(logging.ERROR)

    def __exit__(self, *error: Any) -> None:
        logging.getLogger("torch").setLevel(self._level)
        super().__exit__(*error)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.set_defaults(command="measure", effort="full")
    commands = parser.add_subparsers(metavar="compare")
    two = commands.add_parser("compare", help="show what moved between two results.json by more than the noise")
    two.set_defaults(command="compare")
    two.add_argument("before", type=Path, metavar="A.json", help="the earlier run")
    two.add_argument("after", type=Path, metavar="B.json", help="the later run")
    two.add_argument(
        "--bound",
        type=float,
        default=1.1,
        help="exit status 1 if a row got worse by more than this factor (default: 1.1)",
    )
    several = commands.add_parser(
        "scale-out", help="time training steps in several processes, and say what more would do, on paper"
    )
    several.set_defaults(command="scale-out")
    several.add_argument(
        "--processes", nargs="+", type=int, metavar="N", help="sizes of the groups (default: 2, 4, … one a core or GPU)"
    )
    several.add_argument("--rounds", type=int, default=20, help="samples of ten steps each (default: 20)")
    _add_common(several)
    _add_common(parser, device="auto", out=Path("runs/benchmarks"), keep=False)
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="some of the benchmarks (default: all)"
    )
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument(
        "--quick", dest="effort", action="store_const", const="quick", help="under two minutes on two cores"
    )
    effort.add_argument(
        "--smoke", dest="effort", action="store_const", const="smoke", help="seconds; only proves that it runs"
    )
    return parser.parse_args(arguments)


def _add_common(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """The options that may stand before and after a command."""

    def add(name: str, **settings: Any) -> None:
        parser.add_argument(f"--{name}", default=defaults.get(name, argparse.SUPPRESS), **settings)

    add("device", choices=("auto", "cpu", "cuda"), help="default: a GPU if there is one")
    add("out", type=Path, help="the directory (default: runs/benchmarks)")
    add("keep", action="store_true", help="copy what is written to benchmarks/results, as DEVICE-DATE, for the README")


if __name__ == "__main__":
    sys.exit(main())
