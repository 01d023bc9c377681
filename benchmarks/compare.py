"""`compare`: the rows that changed between two runs by more than their noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from benchmarks.record import Row, Summary, summarise

__all__ = ["Change", "changes", "table"]


@dataclass(frozen=True)
class Change:
    """One row of two runs.

    Args:
        row: as it is in the later run.
        before: median and quartiles there.
        after: median and quartiles here.
        relative: whether what is compared is the ratio to the floor of the same round, not the figure itself.
    """

    row: Row
    before: Summary
    after: Summary
    relative: bool

    @property
    def factor(self) -> float:
        """After, as a multiple of before; above 1 is worse."""
        if not self.before.median:
            return float("inf") if self.after.median else 1.0
        return self.after.median / self.before.median

    @property
    def is_noise(self) -> bool:
        """Return whether the two ranges between the quartiles overlap."""
        return self.after.q1 <= self.before.q3 and self.before.q1 <= self.after.q3


def changes(before: Sequence[Row], after: Sequence[Row]) -> Iterator[Change]:
    """Yield each row that both runs have.

    Where a row has a floor, its ratio to it is compared: what slows the whole machine is no change.
    """
    by_key = {row.key: row for row in before if row.samples}
    for row in after:
        old = by_key.get(row.key)
        if old is None or not row.samples:
            continue
        relative = bool(row.ratio and old.ratio)
        old_values, new_values = (old.ratio, row.ratio) if relative else (old.samples, row.samples)
        yield Change(row, summarise(old_values), summarise(new_values), relative)


def table(moved: Sequence[Change]) -> Table:
    """Return the rows that changed, the worst first."""
    shown = Table(box=box.SIMPLE_HEAD, caption="medians; where × is said, ratios to the floor of the same round")
    for name in ("benchmark", "form", "measure", "of"):
        shown.add_column(name, overflow="fold")
    for name in ("before", "after", "change"):
        shown.add_column(name, justify="right", no_wrap=True)
    for change in sorted(moved, key=lambda change: -change.factor):
        row = change.row
        unit = "×" if change.relative else row.unit
        params = ", ".join(str(value) for value in row.params.values())
        figures = (f"{of.median:.4g} {unit}" for of in (change.before, change.after))
        shown.add_row(
            f"{row.benchmark}, {row.framework}", row.form, row.measure, params, *figures, f"{change.factor - 1:+.1%}"
        )
    return shown
