"""`python -m benchmarks`: time of one call, forward and backward, over all forms, peers and floors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import op
from benchmarks.machine import describe, find_device
from benchmarks.record import Row, find, ratios, relate, save, summarise
from benchmarks.settings import Settings
from benchmarks.show import draw, tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write; return the exit status."""
    options = _parse(arguments)
    settings = Settings(find_device(options.device), options.effort)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    machine = describe(settings.device)
    console.print(f"{settings.device}: {machine['gpu'] or machine['processor']}, {machine['versions']}", soft_wrap=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("op")

        def tell(done: int, total: int, what: str) -> None:
            progress.update(bar, completed=done, total=total, description=what)

        rows = op.run(settings, tell)
    relate(rows)
    for part in tables(rows):
        console.print(part)
    found = reach(rows)
    for record in found:
        console.print(
            f"{record['name']}: {record['ratio']:.3f} ({record['q1']:.3f}–{record['q3']:.3f}){_verdict(record)}"
        )
    save(options.out / "results.json", machine, rows, found)
    draw(rows, options.out / "op.png")
    for name in ("results.json", "op.png"):
        console.print(str(options.out / name), soft_wrap=True, markup=False)
    return 0


def reach(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the ratios that are aimed at, as measured: medians and quartiles over the rounds.

    Args:
        rows: of `op`; what they do not hold is left out.

    Returns:
        records with `name`, `ratio`, `q1`, `q3` and `bound`, the largest ratio that is good enough.
    """
    ours, bare, article = "gradient_reversal", "bare apply", "article Function"
    wanted = [
        (2**8, "forward", ours, bare, 1.25),
        (2**8, "forward", ours, article, 0.8),
        (2**8, "forward", "GRL", "article Module", 0.85),
        (2**8, "backward", ours, bare, 1.1),
        (2**25, "both", ours, article, 0.6),
        (2**25, "both", "GRL", ours, 1.01),
    ]
    found = []
    for size, measure, form, other, bound in wanted:
        where = {"framework": "torch", "bytes": size, "dtype": "float32", "coeff": "number", "measure": measure}
        pairs = zip(find(rows, form=form, **where), find(rows, form=other, **where), strict=False)
        of_rounds = [ratio for mine, theirs in pairs for ratio in ratios(mine, theirs)]
        if of_rounds:
            of = summarise(of_rounds)
            name = f"PyTorch, {size} bytes, {measure}: {form} / {other}"
            found.append({"name": name, "ratio": of.median, "q1": of.q1, "q3": of.q3, "bound": bound})
    return found


def _verdict(record: dict[str, Any]) -> str:
    return f", aimed at: at most {record['bound']}" + ("" if record["ratio"] <= record["bound"] else ", missed")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument(
        "--quick", dest="effort", action="store_const", const="quick", help="under two minutes on two cores"
    )
    effort.add_argument(
        "--smoke", dest="effort", action="store_const", const="smoke", help="seconds; only proves that it runs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks"), help="the directory (default: runs/benchmarks)"
    )
    parser.set_defaults(effort="full")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
