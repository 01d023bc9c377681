"""The table of a report on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from grl.diagnosis.records import ParameterGradient
from grl.diagnosis.reversal import signed

__all__ = ["show"]


def show(records: Iterable[ParameterGradient], sentence: str) -> None:
    """Print a table of parameters with a sentence below it; needs rich.

    Args:
        records: one for each row.
        sentence: the verdict and its reason.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("parameter", caption=sentence, caption_justify="left")
    for column in ("with / without the layer", "|label gradient|", "|domain gradient|", "cosine"):
        table.add_column(column, justify="right")
    for record in records:
        ratio = "–" if record.ratio is None else signed(record.ratio)
        numbers = (record.label_norm, record.domain_norm, record.cosine)
        table.add_row(record.name, ratio, *("–" if number is None else f"{number:.3g}" for number in numbers))
    Console(highlight=False).print(table, markup=False)
