"""`scale`: time against the size of x, and against the number of layers in one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.form import Backend, TimedForm
from benchmarks.op import measure
from benchmarks.record import Row, find
from benchmarks.settings import Group, Settings, Tell

__all__ = ["layer_cost", "run", "slopes"]

_SINGLE = {"torch": ("gradient_reversal", "multiply"), "jax": ("custom_vjp, jit", "multiply, jit")}
_SMALL = 2**8  # bytes


def run(found: Sequence[Backend], settings: Settings, tell: Tell) -> list[Row]:
    """Time growing inputs, then growing models; layers and identities in the same rounds."""
    rows: list[Row] = []
    powers = settings.scale_powers
    for done, power in enumerate(powers):
        tell(done, len(powers) + 1, f"2^{power} bytes")
        rows += measure("scale", found, Group(2**power), settings, _single, measures=("both",))
    counts = settings.scale_layers
    tell(len(powers), len(powers) + 1, f"up to {counts[-1]} layers")

    def models(backend: Backend) -> list[TimedForm]:
        return [form for count in counts for form in _models(backend.name, count)]

    of_models = measure("scale", found, Group(_SMALL), settings, models, measures=("both",))
    for row in of_models:
        row.floor = None  # one multiply is not the floor of a model
    return rows + of_models


def _single(backend: Backend) -> list[TimedForm]:
    forms = {form.name: form for form in backend.forms}
    layer, floor = _SINGLE[backend.name]
    return [forms[layer], replace(forms[floor], measures=("both",))]


def _models(framework: str, count: int) -> tuple[TimedForm, TimedForm]:
    """Return a model of so many layers and one of identities; with λ = 1 the gradient keeps its size."""
    mode = "eager" if framework == "torch" else "jit"
    chain = _chain(framework, count), _chain(framework, count, identity=True)
    return (
        TimedForm(f"{count} layers", "ours", chain[0], mode, ("both",), _sign(count)),
        TimedForm(f"{count} identities", "floor", chain[1], mode, ("both",), _sign(0)),
    )


def _sign(count: int) -> Callable[[Any], float]:
    return lambda coeff: (-1.0) ** count


def _chain(framework: str, count: int, identity: bool = False) -> Callable[[Any], tuple[Callable[..., Any], tuple[()]]]:
    def make(coeff: Any) -> tuple[Callable[..., Any], tuple[()]]:
        if framework == "torch":
            from torch import nn

            from benchmarks.forms_torch import BareModule
            from grl.torch_impl import GRL

            return nn.Sequential(*(BareModule() if identity else GRL(1.0) for _ in range(count))), ()
        from grl.jax_impl import gradient_reversal

        def model(x: Any) -> Any:
            for _ in range(0 if identity else count):
                x = gradient_reversal(x)
            return x

        return model, ()

    return make


def slopes(rows: Sequence[Row], framework: str, form: str) -> tuple[float, float]:
    """Return d log(time) / d log(bytes) over the smaller and over the larger half of the sizes: about 0, about 1."""
    of_size = sorted((row.params["bytes"], row.summary().median) for row in find(rows, framework=framework, form=form))
    sizes, times = np.log(np.array(of_size)).T
    half = len(sizes) // 2
    low, high = (float(np.polyfit(sizes[part], times[part], 1)[0]) for part in (slice(half), slice(-half, None)))
    return low, high


def layer_cost(rows: Sequence[Row], framework: str) -> float:
    """Return the ns that each further layer adds to a forward and a backward pass (least squares)."""
    found = [row for row in find(rows, framework=framework) if row.form.endswith(" layers")]
    counts, times = [int(row.form.split()[0]) for row in found], [row.summary().median for row in found]
    return float(np.polyfit(counts, times, 1)[0])
