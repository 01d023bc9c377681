"""Two models' runs judged: for each array how far they are apart, and whether rounding explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from grl.bits import ulp_distance
from grl.port.closeness import TOLERANCE, WIDENING, alignment, distance, size
from grl.port.correspondence import Correspondence
from grl.port.findings import Row
from grl.port.runs.recording import Array, Key, Recording

__all__ = ["AllRuns", "Runs", "judge"]

_SAFETY = 1000.0
"""A kernel rounds once for each term of a sum, and so more often than a perturbed run moves its result."""

_MOST = 1e-6
"""Perturbed runs explain at most this part of the largest array of a kind: a model may jump where a number moves."""

_NOTHING = 1e-13
"""Of the largest gradient: a difference that is allowed for a gradient that is zero but for rounding."""

_FLOAT32 = 4 * 2.0**-23
"""Of an array's largest number: the rounding of an optimiser's step that is computed in float32."""


class Runs(NamedTuple):
    """A run of each model, both in the same precision."""

    torch: Recording
    nnx: Recording


@dataclass(frozen=True)
class AllRuns:
    """All runs that are compared.

    Args:
        double: both models in float64.
        single: both models in their own precision.
        perturbed: both models in float64, with their numbers moved by a unit in the last place.
    """

    double: Runs
    single: Runs
    perturbed: tuple[Runs, ...]


class Pair(NamedTuple):
    """One array of both models in one run, the nnx model's in PyTorch's layout."""

    torch: Array
    nnx: Array


@dataclass(frozen=True)
class Measured:
    """One array in all runs.

    Args:
        double: in float64.
        single: in the models' own precision.
        perturbed: in float64, with numbers moved by a unit in the last place.
    """

    double: Pair
    single: Pair
    perturbed: tuple[Pair, ...]

    @property
    def error_bar(self) -> float:
        """How far rounding in float64 can move the array, measured by the perturbed runs."""
        spreads = [
            distance(moved, array)
            for pair in self.perturbed
            for moved, array in zip(pair, self.double, strict=True)
            if moved.shape == array.shape
        ]
        return _SAFETY * max((spread for spread in spreads if np.isfinite(spread)), default=0.0)

    def aligned(self, channels: frozenset[int]) -> Measured:
        """Return the same with the axes of the nnx model's arrays in PyTorch's order."""
        align = alignment(self.double.nnx, self.double.torch, channels)
        pairs = [Pair(pair.torch, align(pair.nnx)) for pair in (self.double, self.single, *self.perturbed)]
        return Measured(pairs[0], pairs[1], tuple(pairs[2:]))


def judge(correspondence: Correspondence, runs: AllRuns) -> list[Row]:
    """Return a row for each array that both models have.

    Args:
        correspondence: the names and layouts of both models.
        runs: all runs of both.
    """
    rows = list(_activations(correspondence, runs))
    for kind in ("gradient", "update", "statistic"):
        rows += _arrays(kind, correspondence, runs)
    return rows


def _activations(correspondence: Correspondence, runs: AllRuns) -> Iterator[Row]:
    activations = runs.double.torch.activations
    largest = max((size(array) for arrays in activations.values() for array in arrays), default=0.0)
    judge_one = _Judge("activation", runs, largest)
    for key in activations:
        nnx_key = correspondence.nnx_key(key)
        if nnx_key not in runs.double.nnx.activations:
            continue
        double, single = (_outputs(one, key, nnx_key) for one in (runs.double, runs.single))
        perturbed = [_outputs(one, key, nnx_key) for one in runs.perturbed]
        rows = []
        for number, (in_double, in_single) in enumerate(zip(double, single, strict=False)):
            moved = tuple(outputs[number] for outputs in perturbed if number < len(outputs))
            measured = Measured(in_double, in_single, moved).aligned(correspondence.channels)
            rows.append(judge_one.row(key, nnx_key[0], measured))
        if rows:
            yield max(rows, key=lambda row: (not row.agrees, row.absolute))


def _outputs(runs: Runs, key: Key, nnx_key: Key) -> list[Pair]:
    """The arrays that one call of a layer returns."""
    pairs = zip(runs.torch.activations.get(key, ()), runs.nnx.activations.get(nnx_key, ()), strict=False)
    return [Pair(*pair) for pair in pairs]


def _arrays(kind: str, correspondence: Correspondence, runs: AllRuns) -> Iterator[Row]:
    every = [_ByName.of(kind, correspondence, one) for one in (runs.double, runs.single, *runs.perturbed)]
    double = every[0]
    known = list(double.torch) if kind == "statistic" else _backwards(runs.double.torch)
    names = [name for name in known if name in double.nnx]
    if kind == "update":  # nnx has one bias for a recurrent layer's two; its step is that of their sum
        names = [name for name in names if "bias_hh" not in name.rpartition(".")[2]]
    largest = max((size(double.pair(name).torch) for name in names), default=0.0)
    judge_one = _Judge(kind, runs, largest)
    for name in names:
        pairs = [arrays.pair(name) for arrays in every]
        measured = Measured(pairs[0], pairs[1], tuple(pairs[2:])).aligned(frozenset())
        yield judge_one.row((name, 0), correspondence.nnx_name(name), measured)


@dataclass(frozen=True)
class _ByName:
    """The gradients, steps or statistics of a run, the nnx model's by PyTorch's names and in its layouts."""

    torch: Mapping[str, Array]
    nnx: Mapping[str, Array]

    @classmethod
    def of(cls, kind: str, correspondence: Correspondence, runs: Runs) -> _ByName:
        nnx_arrays = correspondence.in_torch(_of_kind(runs.nnx, kind), gradients=kind != "statistic")
        return cls(_of_kind(runs.torch, kind), nnx_arrays)

    def pair(self, name: str) -> Pair:
        nnx_array = self.nnx[name]
        # A parameter that the loss does not depend on has no gradient in PyTorch, and the gradient 0 in JAX.
        return Pair(self.torch.get(name, np.zeros_like(nnx_array)), nnx_array)


def _of_kind(run: Recording, kind: str) -> dict[str, Array]:
    return {"gradient": run.gradients, "update": run.updates, "statistic": run.statistics}[kind]


def _backwards(run: Recording) -> list[str]:
    """The parameters in the order of the backward pass."""
    last = {name: number for number, (name, _) in enumerate(run.activations)}
    return sorted(run.parameters, key=lambda name: -last.get(name.rpartition(".")[0], -1))


@dataclass(frozen=True)
class _Judge:
    """Judges the arrays of one kind.

    Args:
        kind: as in `Row`.
        runs: all runs.
        largest: the largest number of all arrays of this kind.
    """

    kind: str
    runs: AllRuns
    largest: float

    def row(self, key: Key, nnx_name: str, measured: Measured) -> Row:
        double, single = measured.double, measured.single
        wide = np.result_type(single.torch, np.float64)
        rounding = max(distance(one.astype(wide), two) for one, two in zip(single, double, strict=True))
        scale = max(map(size, double))
        whole = max(scale, *map(size, single))
        absolute, real = distance(*single), distance(*double)
        same_shape = single.torch.shape == single.nnx.shape
        has_ulp = same_shape and single.torch.dtype == single.nnx.dtype and single.torch.dtype.kind == "f"
        # Rounding makes no number infinite or NaN on one side alone.
        finite = not same_shape or bool((np.isfinite(single.torch) == np.isfinite(single.nnx)).all())
        allowed = self._allowed(scale, rounding, measured.error_bar)
        return Row(
            kind=self.kind,
            key=key,
            where=key[0] if key[0] == nnx_name else f"{key[0]} (nnx: {nnx_name})",
            absolute=absolute,
            relative=absolute / whole if whole else absolute,
            ulp=float(ulp_distance(*single).max()) if has_ulp and single.torch.size else float("nan"),
            rounding=rounding,
            scale=whole,
            real=real,
            agrees=finite and real <= allowed,
            allowed=allowed,
        )

    def _allowed(self, scale: float, rounding: float, error_bar: float) -> float:
        """Return the largest difference in float64 that rounding explains."""
        run = self.runs.double.nnx
        of_float32 = rounding * (4.0 if run.narrow else WIDENING) if np.isfinite(rounding) else 0.0
        allowed = TOLERANCE * scale + of_float32 + min(error_bar, _MOST * self.largest)
        if self.kind in ("gradient", "update"):
            allowed += _NOTHING * self.largest
        if self.kind == "update" and run.narrow_step:
            allowed += _FLOAT32 * scale
        return allowed
