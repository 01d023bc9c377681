"""One record of a run's history: a line of metrics.jsonl."""

from __future__ import annotations

from typing import TypedDict, TypeGuard

__all__ = ["RECORD_KEYS", "Record", "is_record"]


class Record(TypedDict):
    """One line of metrics.jsonl: a step's number from 1, its losses before the update, and its λ.

    A loss that is not finite is None, because JSON has neither NaN nor infinity; so is the domain loss of a run
    without adaptation.
    """

    step: int
    label_loss: float | None
    domain_loss: float | None
    coeff: float


RECORD_KEYS = tuple(Record.__annotations__)
"""The keys of a record, in their order."""


def is_record(value: object) -> TypeGuard[Record]:
    """Return whether a value of JSON is a record.

    Example:
        >>> is_record({"step": 1, "label_loss": 0.5, "domain_loss": None, "coeff": 0.0}), is_record({"step": 1})
        (True, False)
    """
    if not isinstance(value, dict) or tuple(value) != RECORD_KEYS:
        return False
    losses = (value["label_loss"], value["domain_loss"])
    return (
        type(value["step"]) is int
        and type(value["coeff"]) is float
        and all(loss is None or type(loss) is float for loss in losses)
    )
