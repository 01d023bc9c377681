"""The summary of a finished run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from grl.experiment import Result
from grl.experiment.chance import explain_chance

__all__ = ["remarks", "summarise"]


def summarise(result: Result, baseline: Result | None) -> Table:
    """Return the scores of a run as a table, beside those of a run without adaptation if there is one."""
    metrics = result.metrics
    last = metrics["history"][-1]
    title = f"{metrics['task']}: {metrics['method']} in {metrics['backend']}, seed {metrics['seed']}"
    table = Table(title=Text(title, "table.title"))  # as markup, a path's [v2] would be a style
    table.add_column("at the last step")
    table.add_column("value", justify="right")
    table.add_column("")
    compared = "" if baseline is None else f"source-only: {_number(baseline.metrics['target_accuracy'])}"
    table.add_row("source accuracy", _number(metrics["source_accuracy"]), "")
    table.add_row("target accuracy", _number(metrics["target_accuracy"]), compared)
    table.add_row("domain accuracy", _number(metrics["domain_accuracy"]), "chance: 0.500")
    table.add_row(
        "proxy A-distance", _number(metrics["proxy_a_distance"]), "0: domains look alike; 2: always distinguished"
    )
    table.add_row("label loss", _number(last["label_loss"]), "")
    table.add_row("domain loss", _number(last["domain_loss"]), f"chance: ln 2 = {math.log(2):.3f}")
    table.add_row("seconds", f"{metrics['seconds']:.1f}", f"{metrics['steps'] / metrics['seconds']:.1f} steps/s")
    return table


def remarks(result: Result) -> Iterator[str]:
    """Yield remarks that help to read the table."""
    skipped, steps = result.metrics.get("skipped_steps"), result.metrics["steps"]
    if skipped:
        yield f"{skipped} of {steps} steps were skipped: their loss was not finite, or the weights would not have been."
    explanation = explain_chance(result.metrics["history"])
    if explanation is not None:
        yield explanation


def _number(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"
