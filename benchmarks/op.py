"""`op`: forward and backward time of one call, over all forms, peers and floors, sizes, dtypes and kinds of λ."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.form import Backend, TimedForm, shape_of
from benchmarks.inputs import ring_length
from benchmarks.record import Row, explain
from benchmarks.settings import Group, Settings, Tell
from benchmarks.timing import Call, interleave

__all__ = ["measure", "run"]

Chooser = Callable[[Backend], Iterable[TimedForm]]


def run(found: Sequence[Backend], settings: Settings, tell: Tell) -> list[Row]:
    """Time all groups."""
    rows: list[Row] = []
    groups = settings.groups
    for index, group in enumerate(groups):
        tell(index, len(groups), f"{group.dtype}, 2^{group.size.bit_length() - 1} bytes, λ: {group.coeff}")

        def chosen(backend: Backend, few: bool = group.few) -> list[TimedForm]:
            return [form for form in backend.forms if form.headline or not few]

        rows += measure("op", found, group, settings, chosen)
    return rows


@dataclass
class _Case:
    """A call to time, with the data of its row."""

    row: Row
    call: Call
    check: Callable[[], None]


def measure(
    benchmark: str,
    found: Sequence[Backend],
    group: Group,
    settings: Settings,
    chosen: Chooser,
    *,
    measures: Sequence[str] = ("forward", "backward", "both"),
    repeat: int | None = None,
    rounds: tuple[int, int] | None = None,
) -> list[Row]:
    """Check and time one group: all chosen forms of all frameworks in the same rounds.

    Args:
        benchmark: the name that the rows carry.
        found: the frameworks.
        group: size, dtype and kind of λ.
        settings: the effort.
        chosen: the forms of a framework.
        measures: which of `MEASURES`.
        repeat: calls of each sample, instead of calibrating them.
        rounds: instead of those of the settings.

    Returns:
        One row for each form, measure and clock; those that failed say why.
    """
    cases: list[_Case] = []
    rows: list[Row] = []
    for backend in found:
        backend.start()
        inputs = backend.inputs(group.size, group.dtype, ring_length(group.size))
        samples, _ = shape_of(inputs[0][0].size if backend.name == "jax" else inputs[0][0].numel())
        coeff = backend.coefficient(group.coeff, samples)
        for form in chosen(backend):
            for name in (name for name in measures if name in form.measures):
                _prepare(benchmark, backend, group, form, name, inputs, coeff, cases, rows)
    calls = {index: case.call for index, case in enumerate(cases)}
    samples_of, failures = interleave(
        calls,
        rounds=rounds or settings.rounds,
        seconds=settings.group_seconds,
        sample_ns=settings.sample_ns,
        repeat=repeat,
    )
    for index, case in enumerate(cases):
        try:
            if index in failures:
                raise failures[index]
            case.check()  # again: timing must not have broken the call
            case.row.samples = samples_of[index]
        except Exception as error:
            case.row.failure = explain(error)
        rows.append(case.row)
    cases.clear()
    gc.collect()
    return rows


def _prepare(
    benchmark: str,
    backend: Backend,
    group: Group,
    form: TimedForm,
    measure: str,
    inputs: Any,
    coeff: Any,
    cases: list[_Case],
    rows: list[Row],
) -> None:
    """Build and check the calls of one form. A failure becomes a row at once."""
    params = {"bytes": group.size, "dtype": group.dtype, "coeff": group.coeff}

    def row(**more: Any) -> Row:
        floor = backend.floor(form, measure)
        return Row(benchmark, backend.name, form.name, form.kind, measure, "ns", params | more, floor=floor)

    try:
        calls = backend.calls(form, inputs, coeff, measure)
        backend.check(form, inputs, coeff, measure, calls[0])
    except Exception as error:
        failed = row()
        failed.failure = explain(error)
        rows.append(failed)
        return
    for call in calls:

        def check(call: Call = call) -> None:
            backend.check(form, inputs, coeff, measure, call)

        cases.append(_Case(row(clock=call.clock.name), call, check))
