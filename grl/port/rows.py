"""Two runs judged: for each array how far they are apart, and whether that is more than rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from grl.bits import ulp_distance
from grl.port.closeness import TOLERANCE, WIDENING, alignment, distance, size
from grl.port.report import Row
from grl.port.runs.recording import Array, Key, Recording
from grl.port.twins import Twins

__all__ = ["granted", "judge"]

Runs = tuple[Recording, Recording]
"""PyTorch's and the nnx model's."""

_NOTHING = 1e-13  # of the largest gradient of all: a gradient that is 0 but for rounding has no size of its own


def judge(twins: Twins, double: Runs, single: Runs) -> list[Row]:
    """Return a row for each array that both sides have.

    Args:
        twins: the models.
        double: both in float64.
        single: both as they are.
    """
    rows = list(_activations(twins, double, single))
    for kind in ("gradient", "update", "statistic"):
        rows += _arrays(kind, twins, double, single)
    return rows


def granted(rounding: float, run: Recording) -> float:
    """Return what a measured rounding in float32 explains in float64.

    Args:
        rounding: the difference between the float32 and the float64 run.
        run: the nnx model's, which may round to float32 in float64 too.
    """
    return (4.0 if run.narrow else WIDENING) * rounding if np.isfinite(rounding) else 0.0


def _activations(twins: Twins, double: Runs, single: Runs) -> Iterator[Row]:
    for key in double[0].activations:
        their_key = twins.their_key(key)
        if their_key not in double[1].activations:
            continue
        arrays = [run[side].activations[k] for run in (double, single) for side, k in ((0, key), (1, their_key))]
        judged = [
            _row("activation", key, their_key[0], a, b, a32, b32, 0.0, double[1], twins.channels)
            for a, b, a32, b32 in zip(*arrays, strict=False)
        ]
        if judged:
            yield max(judged, key=lambda row: (not row.agrees, row.absolute))


def _arrays(kind: str, twins: Twins, double: Runs, single: Runs) -> Iterator[Row]:
    ours, theirs = ([_of_kind(run[side], kind) for run in (double, single)] for side in (0, 1))
    converted = [twins.in_torch(arrays, gradients=kind != "statistic") for arrays in theirs]
    known = list(ours[0]) if kind == "statistic" else _backwards(double[0])
    names = [name for name in known if name in converted[0]]
    if kind == "update":  # nnx has one bias for a recurrent layer's two, and its step is that of their sum
        names = [name for name in names if "bias_hh" not in name.rpartition(".")[2]]
    # What the loss does not depend on has no gradient in PyTorch, and the gradient 0 in JAX.
    ours = [{n: run.get(n, np.zeros_like(converted[0][n])) for n in names} for run in ours]
    largest = max((size(ours[0][name]) for name in names), default=0.0)
    floor = 0.0 if kind == "statistic" else _NOTHING * largest
    for name in names:
        arrays = ours[0][name], converted[0][name], ours[1][name], converted[1][name]
        module, _, own = name.rpartition(".")
        their_name = f"{twins.their_names[module]}.{own}" if module in twins.their_names else name
        yield _row(kind, (name, 0), their_name, *arrays, floor, double[1])


def _of_kind(run: Recording, kind: str) -> dict[str, Array]:
    return {"gradient": run.gradients, "update": run.updates, "statistic": run.statistics}[kind]


def _backwards(run: Recording) -> list[str]:
    """The parameters as the backward pass reaches them."""
    last = {name: i for i, (name, _) in enumerate(run.activations)}
    return sorted(run.parameters, key=lambda name: -last.get(name.rpartition(".")[0], -1))


def _row(
    kind: str,
    key: Key,
    their_name: str,
    a: Array,
    b: Array,
    a32: Array,
    b32: Array,
    floor: float,
    run: Recording,
    channels: Iterable[int] = (),
) -> Row:
    """Judge one array.

    Args:
        kind: what it is.
        key: its name in PyTorch, and which call.
        their_name: its name in nnx.
        a, b: PyTorch's and the nnx model's in float64.
        a32, b32: the same in the models' own precision.
        floor: a difference that is granted in any case.
        run: the nnx model's in float64.
        channels: as for `alignment`.
    """
    align = alignment(b, a, channels)
    wide = np.result_type(a32, np.float64)
    b, b32 = align(b), align(b32)
    scale = max(size(a), size(b))
    whole = max(scale, size(a32), size(b32))
    rounding = max(distance(a32.astype(wide), a), distance(b32.astype(wide), b))
    real, seen = distance(a, b), distance(a32, b32)
    alike = a32.shape == b32.shape and a32.dtype == b32.dtype and a32.size and a32.dtype.kind == "f"
    # No rounding makes a number infinite or NaN on one side alone.
    finite = a32.shape != b32.shape or bool((np.isfinite(a32) == np.isfinite(b32)).all())
    return Row(
        kind=kind,
        key=key,
        where=key[0] if key[0] == their_name else f"{key[0]} (nnx: {their_name})",
        absolute=seen,
        relative=seen / whole if whole else seen,
        ulp=float(ulp_distance(a32, b32).max()) if alike else float("nan"),
        rounding=rounding,
        scale=whole,
        real=real,
        agrees=finite and real <= TOLERANCE * scale + granted(rounding, run) + floor,
    )
