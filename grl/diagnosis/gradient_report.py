"""Does the reversal work in this model? The feature extractor's gradients, with the layer and without, in words."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np

from grl.arrays import Array
from grl.diagnosis.reversal import half_of, never_called, signed
from grl.diagnosis.verdict import Seen, judge

__all__ = ["DomainGradientReport", "ParameterGradient", "domain_gradient_report"]


_FAINT_WEIGHT = 1e-4  # a weight of the domain loss this near to 0 has no sign
_SCALE = 4.0  # enough for any clipping to show, little enough for float16


@dataclass(frozen=True)
class ParameterGradient:
    """The gradients of one parameter, or of all of them together.

    Args:
        name: the parameter's.
        ratio: c in ∂domain/∂θ with the layer = c · the same without it, −λ if all is well; None if both are 0.
        label_norm: the norm of the label loss's gradient.
        domain_norm: the norm of the domain loss's gradient, with the layer.
        cosine: of the angle between the two; None if one is 0.
    """

    name: str
    ratio: float | None
    label_norm: float
    domain_norm: float
    cosine: float | None


@dataclass(frozen=True)
class DomainGradientReport:
    """What reaches a feature extractor; `str` of it is a sentence.

    Args:
        verdict: "ok", "skipped", "leaking", "label reversed", "sign doubled", "vanished", "exploded", "wrong
            coefficient", "not linear", "not repeatable" or "not finite".
        reason: the verdict in plain words, with what to do.
        records: one for each parameter of the feature extractor.
        whole: all these parameters together.
        label_loss: its value.
        domain_loss: its value.
    """

    verdict: str
    reason: str
    records: tuple[ParameterGradient, ...]
    whole: ParameterGradient
    label_loss: float
    domain_loss: float

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}"

    def show(self) -> None:
        """Print the verdict and a table of the parameters; needs rich."""
        from rich.console import Console
        from rich.table import Table

        table = Table("parameter", caption=str(self), caption_justify="left")
        for column in ("with / without the layer", "|label gradient|", "|domain gradient|", "cosine"):
            table.add_column(column, justify="right")
        for record in (*self.records, self.whole):
            numbers = (record.label_norm, record.domain_norm, record.cosine)
            ratio = "–" if record.ratio is None else signed(record.ratio)
            table.add_row(record.name, ratio, *("–" if number is None else f"{number:.3g}" for number in numbers))
        Console(highlight=False).print(table, markup=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it; numbers that are not finite become None."""
        return _valid(asdict(self))  # type: ignore[no-any-return]

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write all of it to a JSON file; numbers that are not finite become null."""
        with open(fspath(path), "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)


def domain_gradient_report(
    model: Any,
    batch: Any,
    *,
    label_loss: Callable[[Any, Any], Any],
    domain_loss: Callable[[Any, Any], Any],
    features: str | Callable[[str], bool],
    layer: Any = None,
    coeff: float | None = None,
    total_loss: Callable[[Any, Any], Any] | None = None,
) -> DomainGradientReport:
    """Report what the reversal does to a whole model: ∂domain/∂θ with the layer = −λ · the same without it.

    The losses are computed on one batch with the same random numbers, with the layer, without it, and with one in its
    place that lets no gradient through; the model stays as it is.

    Args:
        model: your own, an `nn.Module` or `nnx.Module`; in JAX also a pytree of parameters, as Linen and Equinox have.
        batch: whatever the losses take.
        label_loss: a function of (model, batch) to the label loss, a scalar.
        domain_loss: a function of (model, batch) to the domain loss, as it is added to the label loss.
        features: the feature extractor: the name of the model's attribute, or a predicate of a parameter's name.
        layer: the reversal, if it is not one of grl's: a submodule, its name, its class, or a global function.
        coeff: λ, to be compared; None: any above 0.
        total_loss: the loss that is trained on, to see whether the domain loss is added, with whatever weights. Without
            it a domain loss below 0 counts as subtracted, since a cross entropy never is; give it where yours may be
            (Wasserstein critics).

    Returns:
        The figures by parameter, and the verdict.

    Raises:
        TypeError: the model belongs to neither framework.
        ValueError: there are no such features, or no such layer; or the features are inside of a reentrant checkpoint.

    Example:
        In one line, of a model whose losses are functions of your own:
        `domain_gradient_report(model, batch, label_loss=label, domain_loss=domain, features="backbone").show()`

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """
    half = half_of(_backend(model))
    chosen = features if callable(features) else lambda name: name.startswith(f"{features}.") or name == features
    wanted = [name for name in half.names(model) if chosen(name)]
    if not wanted and any(chosen(name) for name in half.names(model, frozen=True)):
        raise ValueError(f"features: got {features!r}, which is frozen; expected what has a parameter that is trained.")
    if not wanted:
        known = ", ".join(half.names(model)[:4])
        raise ValueError(f"features: got {features!r}, which names no parameter; expected a part of {known}, ….")

    def gradients(loss: Callable[[Any, Any], Any], **how: Any) -> tuple[float, list[dict[str, Array]], int]:
        return half.gradients(loss, model, batch, wanted, **how)  # type: ignore[no-any-return]  # the half is untyped

    as_it_is = gradients(label_loss)
    label_value, (label,), _ = as_it_is
    label_again, (label_plain,), _ = gradients(label_loss, factor=1, layer=layer, before=as_it_is)
    domain_value, (domain, scaled), _ = gradients(domain_loss, scales=(1, 1 / _SCALE))
    domain_again, (plain, plain_scaled), runs = gradients(domain_loss, scales=(1, 1 / _SCALE), factor=1, layer=layer)
    _, (beside,), _ = gradients(domain_loss, factor=0, layer=layer)
    added = domain_value >= 0
    if total_loss is not None:
        added = _weight(_flat(gradients(total_loss)[1][0]), _flat(label), _flat(domain)) >= -_FAINT_WEIGHT
    whole = _record("all together", _flat(label), _flat(domain), _flat(plain))
    seen = Seen(
        whole.ratio,
        label_size=whole.label_norm,
        size=whole.domain_norm,
        plain_size=float(np.linalg.norm(_flat(plain))),
        beside_size=float(np.linalg.norm(_flat(beside))),
        label_ratio=_ratio(_flat(label), _flat(label_plain)),
        label_change=_distance(_flat(label_plain), _flat(label), 1.0),
        values=((label_value, label_again), (domain_value, domain_again)),
        bend=_distance(_flat(domain), _flat(scaled), _SCALE),
        plain_bend=_distance(_flat(plain), _flat(plain_scaled), _SCALE),
        spread=_distance(_flat(domain), _flat(plain), whole.ratio),
        runs=runs,
        function=half.is_function(layer),
        foreign=layer is not None,
        added=added,
        uncalled=never_called(half, model),
    )
    verdict, reason = judge(seen, coeff)
    records = tuple(_record(name, label[name], domain[name], plain[name]) for name in wanted)
    return DomainGradientReport(verdict, reason, records, whole, label_value, domain_value)


def _record(name: str, label: Array, domain: Array, plain: Array) -> ParameterGradient:
    with np.errstate(all="ignore"):  # what is not finite is the verdict's business
        return ParameterGradient(name, _ratio(domain, plain), *_angle(label, domain))


def _angle(label: Array, domain: Array) -> tuple[float, float, float | None]:
    norms = float(np.linalg.norm(label)), float(np.linalg.norm(domain))
    cosine = float(np.vdot(label, domain)) / (norms[0] * norms[1]) if all(norms) else None
    return *norms, cosine


def _ratio(gradient: Array, plain: Array) -> float | None:
    """c for which c·plain is nearest to the gradient."""
    square = float(np.vdot(plain, plain))
    if square:
        return float(np.vdot(plain, gradient)) / square
    return None if not gradient.any() else math.inf


def _weight(total: Array, label: Array, domain: Array) -> float:
    """b for which a·label + b·domain is nearest to the total gradient, with some a."""
    if not all(np.isfinite(gradient).all() for gradient in (total, label, domain)):
        return 1.0  # what is not finite is told before this
    # The weights' difference from 1: where the two gradients are parallel and tell nothing apart, the smallest one.
    (_, difference), *_ = np.linalg.lstsq(np.stack([label, domain], 1), total - label - domain)
    return 1.0 + float(difference)


def _distance(gradient: Array, other: Array, factor: float | None) -> float:
    """How far the gradient is from a multiple of the other, as a part of its own norm."""
    with np.errstate(all="ignore"):
        size = float(np.linalg.norm(gradient))
        return float(np.linalg.norm(gradient - (factor or 0.0) * other)) / size if size else 0.0


def _flat(gradients: Mapping[str, Array]) -> Array:
    return np.concatenate([gradient.reshape(-1) for gradient in gradients.values()])


def _backend(model: Any) -> str:
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(model, torch.nn.Module):
        return "torch"
    if jax is not None and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model)):
        return "jax"
    kind = f"{type(model).__module__}.{type(model).__name__}"
    raise TypeError(f"model: got a {kind}; expected an nn.Module, an nnx.Module or a pytree of JAX arrays.")


def _valid(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _valid(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
