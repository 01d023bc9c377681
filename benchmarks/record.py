"""The results of a run: rows of samples, their statistics, and their file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grl.files import replacing

__all__ = ["Row", "Summary", "explain", "find", "load", "ratios", "relate", "save", "summarise"]


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of samples."""

    median: float
    q1: float
    q3: float


def summarise(samples: Sequence[float]) -> Summary:
    """Return the median and the quartiles (linear interpolation between the samples)."""
    q1, median, q3 = (float(value) for value in np.quantile(np.asarray(samples, dtype=np.float64), (0.25, 0.5, 0.75)))
    return Summary(median, q1, q3)


@dataclass
class Row:
    """One form, one measure, all samples.

    Args:
        benchmark: the benchmark's name.
        framework: "torch" or "jax".
        form: the form's name, with its mode.
        kind: "ours", "peer" or "floor".
        measure: what was measured: "forward", "backward", "both", "retained", …
        unit: "ns", "s", "bytes" or "count"; less is better in all of them.
        params: the rest: size, dtype, kind of λ, clock, …
        samples: in the order of the rounds. Rows with the same `params` were timed in the same rounds.
        floor: (form, measure) of the row that this one is divided by, round by round.
        failure: why there are no samples.
        ratio: those divisions, once `relate` has made them.
    """

    benchmark: str
    framework: str
    form: str
    kind: str
    measure: str
    unit: str
    params: dict[str, Any] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)
    floor: tuple[str, str] | None = None
    failure: str | None = None
    ratio: list[float] = field(default_factory=list)

    @property
    def key(self) -> tuple[Any, ...]:
        """The identity of the row within its run, and across runs."""
        return (self.benchmark, self.framework, self.form, self.measure, tuple(sorted(self.params.items())))

    def summary(self) -> Summary:
        """Median and quartiles of the samples."""
        return summarise(self.samples)


def ratios(row: Row, other: Row) -> list[float]:
    """Return the row's samples divided by the other's, by round; empty if one row failed or the counts differ."""
    if len(row.samples) != len(other.samples) or not all(other.samples):
        return []
    return [mine / theirs for mine, theirs in zip(row.samples, other.samples, strict=True)]


def relate(rows: Sequence[Row]) -> None:
    """Divide each row by its floor, if it has one."""
    by_key = {row.key: row for row in rows}
    for row in rows:
        if row.floor is not None and row.failure is None:
            form, measure = row.floor
            floor = by_key.get((row.benchmark, row.framework, form, measure, row.key[-1]))
            row.ratio = [] if floor is None else ratios(row, floor)


def find(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows that did not fail and have these attributes or params."""

    def fits(row: Row) -> bool:
        return all(row.params.get(name, getattr(row, name, None)) == value for name, value in wanted.items())

    return [row for row in rows if row.failure is None and fits(row)]


def explain(error: BaseException) -> str:
    """Return the reason of a failure in one line, without paths of the machine."""
    lines = str(error).strip().splitlines()
    words = " ".join(lines[:1]).split(" ")
    text = " ".join("…/" + word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in words)
    return f"{type(error).__name__}: {text}"[:240]


def save(path: Path, machine: dict[str, Any], rows: Sequence[Row], reach: Sequence[dict[str, Any]]) -> None:
    """Write a run, one row a line, whole or not at all."""
    lines = []
    for row in rows:
        entry = asdict(row)
        entry["samples"] = [_short(sample) for sample in row.samples]
        entry["ratio"] = [_short(value) for value in row.ratio]
        entry["summary"] = asdict(row.summary()) if row.samples else None
        entry["ratio_summary"] = asdict(summarise(row.ratio)) if row.ratio else None
        lines.append(json.dumps(entry, ensure_ascii=False))
    head = json.dumps({"schema": 1, "machine": machine, "reach": list(reach)}, ensure_ascii=False, indent=1)
    text = head.removesuffix("\n}") + ',\n "rows": [\n' + ",\n".join(lines) + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a run back: the machine and the rows.

    Raises:
        ValueError: the file is no such run.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for entry in content["rows"]:
            entry = {name: value for name, value in entry.items() if not name.endswith("summary")}
            entry["floor"] = None if entry["floor"] is None else tuple(entry["floor"])
            rows.append(Row(**entry))
        return content["machine"], rows
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the results of a benchmark run ({explain(error)})") from error


def _short(value: float) -> float:
    return float(f"{value:.6g}")
