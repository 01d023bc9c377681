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
from grl.diagnosis.half import Half, half_of
from grl.diagnosis.records import Case, Loss, ParameterGradient
from grl.diagnosis.reversal import never_called
from grl.diagnosis.show import show
from grl.diagnosis.verdict import ClassifierGradient, Seen, judge
from grl.json_values import valid

__all__ = ["DomainGradientReport", "ParameterGradient", "domain_gradient_report"]


_FAINT_WEIGHT = 1e-4  # a weight of the domain loss this near to 0 has no sign
_SCALE = 4.0  # enough for any clipping to show, little enough for float16


@dataclass(frozen=True)
class DomainGradientReport:
    """What reaches a feature extractor; `str` of it is a sentence.

    Args:
        verdict: "ok", "skipped", "misplaced", "leaking", "label reversed", "sign doubled", "vanished", "exploded",
            "wrong coefficient", "not linear", "not repeatable" or "not finite".
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
        show((*self.records, self.whole), str(self))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it; numbers that are not finite become None."""
        return {name: valid(value) for name, value in asdict(self).items()}

    def write_json(self, path: str | PathLike[str]) -> None:
        """Write all of it to a JSON file; numbers that are not finite become null.

        Args:
            path: the file.
        """
        with open(fspath(path), "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)

    to_json = write_json


def domain_gradient_report(
    model: Any,
    batch: Any,
    *,
    label_loss: Loss,
    domain_loss: Loss,
    features: str | Callable[[str], bool],
    layer: Any = None,
    coeff: float | None = None,
    total_loss: Loss | None = None,
) -> DomainGradientReport:
    """Report what the reversal does to a whole model: ∂domain/∂θ with the layer = −λ · the same without it.

    The losses are computed on one batch with the same random numbers: with the layer, without it, and with one in its
    place that lets no gradient through. The model stays as it is.

    The parameters of the domain classifier must get the domain gradient unchanged. They are all trained parameters,
    besides the feature extractor's, that get a domain gradient and no label gradient. In PyTorch a tensor hook that
    turns the sign (`x.register_hook(lambda g: -c * g)`, called in the loss) is a reversal too, without `layer=`. A sign
    that the optimiser turns is not seen: no loss shows it.

    Gradients that other threads compute meanwhile stay right. In PyTorch, other threads should not train this model nor
    draw random numbers meanwhile: the model's buffers and PyTorch's random state are restored at the end. Compiled
    functions of all threads run eagerly meanwhile. Reports with `layer=` wait for one another. Threads that a loss
    starts itself (`nn.DataParallel`) do not see the bypass; give `model.module`.

    Args:
        model: your own, an `nn.Module` or `nnx.Module`; in JAX also a pytree of parameters, as Linen and Equinox have.
        batch: whatever the losses take.
        label_loss: a function of (model, batch) to the label loss, a scalar.
        domain_loss: a function of (model, batch) to the domain loss, as it is added to the label loss.
        features: the feature extractor: the name of the model's attribute, or a predicate of a parameter's name.
        layer: the reversal, if it is not one of grl's: a submodule, its name, its class, or a global function.
        coeff: the expected λ; None: any above 0.
        total_loss: the loss that is trained on. It shows whether the domain loss is added, with whatever weights.
            Without it a domain loss below 0 counts as subtracted, since a cross entropy never is; give it where yours
            may be negative (Wasserstein critics).

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
    case = _case(half, model, batch, features, layer)
    label = half.gradients(label_loss, case)
    plain_label = half.gradients(label_loss, case, factor=1) if half.passes_reversal(label_loss, case) else label
    scales = (1.0, 1 / _SCALE)
    domain = half.gradients(domain_loss, case, scales)
    plain_domain = half.gradients(domain_loss, case, scales, factor=1)
    blocked_domain = half.gradients(domain_loss, case, factor=0)
    label_all, domain_all, plain_all = label.gradients[0], domain.gradients[0], plain_domain.gradients[0]
    label_flat, domain_flat, plain_flat = (_flat(case, arrays) for arrays in (label_all, domain_all, plain_all))
    plain_label_flat = _flat(case, plain_label.gradients[0])
    added = domain.value >= 0
    if total_loss is not None:
        total_flat = _flat(case, half.gradients(total_loss, case).gradients[0])
        added = _weight(total_flat, label_flat, domain_flat) >= -_FAINT_WEIGHT
    whole = _record("all together", label_flat, domain_flat, plain_flat)
    classifier = [name for name in case.others if not label_all[name].any() and plain_all[name].any()]
    seen = Seen(
        whole.ratio,
        label_size=whole.label_norm,
        size=whole.domain_norm,
        plain_size=float(np.linalg.norm(plain_flat)),
        beside_size=float(np.linalg.norm(_flat(case, blocked_domain.gradients[0]))),
        label_ratio=_ratio(label_flat, plain_label_flat),
        label_change=_distance(plain_label_flat, label_flat, 1.0),
        values=((label.value, plain_label.value), (domain.value, plain_domain.value)),
        bend=_distance(domain_flat, _flat(case, domain.gradients[1]), _SCALE),
        plain_bend=_distance(plain_flat, _flat(case, plain_domain.gradients[1]), _SCALE),
        spread=_distance(domain_flat, plain_flat, whole.ratio),
        runs=plain_domain.runs,
        by_hook=plain_domain.by_hook,
        is_function=half.is_function(layer),
        is_foreign=layer is not None,
        added=added,
        uncalled=never_called(half, model),
        classifier={name: _classifier_gradient(domain_all[name], plain_all[name]) for name in classifier},
    )
    verdict, reason = judge(seen, coeff)
    records = tuple(_record(name, label_all[name], domain_all[name], plain_all[name]) for name in case.names)
    return DomainGradientReport(verdict, reason, records, whole, label.value, domain.value)


def _case(half: Half, model: Any, batch: Any, features: str | Callable[[str], bool], layer: Any) -> Case:
    """Find the parameters of the feature extractor."""
    is_chosen = features if callable(features) else lambda name: name.startswith(f"{features}.") or name == features
    trained = half.names(model)
    chosen = [name for name in trained if is_chosen(name)]
    if not chosen and any(is_chosen(name) for name in half.names(model, frozen=True)):
        raise ValueError(f"features: got {features!r}, which is frozen; expected a part with trained parameters.")
    if not chosen:
        known = ", ".join(trained[:4])
        raise ValueError(f"features: got {features!r}, which names no parameter; expected a part of {known}, ….")
    return Case(model, batch, tuple(chosen), tuple(name for name in trained if name not in set(chosen)), layer)


def _classifier_gradient(domain: Array, plain: Array) -> ClassifierGradient:
    return ClassifierGradient(_ratio(domain, plain) or 0.0, _distance(plain, domain, 1.0))


def _record(name: str, label: Array, domain: Array, plain: Array) -> ParameterGradient:
    with np.errstate(all="ignore"):  # non-finite values are reported by `judge`
        label_norm, domain_norm = float(np.linalg.norm(label)), float(np.linalg.norm(domain))
        cosine = float(np.vdot(label, domain)) / (label_norm * domain_norm) if label_norm and domain_norm else None
        return ParameterGradient(name, _ratio(domain, plain), label_norm, domain_norm, cosine)


def _ratio(gradient: Array, plain: Array) -> float | None:
    """Return the c for which c·plain is nearest to the gradient."""
    square = float(np.vdot(plain, plain))
    if square:
        return float(np.vdot(plain, gradient)) / square
    return None if not gradient.any() else math.inf


def _weight(total: Array, label: Array, domain: Array) -> float:
    """Return the b for which a·label + b·domain is nearest to the total gradient, with some a."""
    if not all(np.isfinite(gradient).all() for gradient in (total, label, domain)):
        return 1.0  # non-finite values have their own verdict
    # Solved for the weights' difference from 1. Parallel gradients leave the weights open; then it is the smallest.
    (_, difference), *_ = np.linalg.lstsq(np.stack([label, domain], 1), total - label - domain)
    return 1.0 + float(difference)


def _distance(gradient: Array, reference: Array, factor: float | None) -> float:
    """Return the distance of the gradient from a multiple of the reference, relative to the gradient's norm."""
    with np.errstate(all="ignore"):
        size = float(np.linalg.norm(gradient))
        return float(np.linalg.norm(gradient - (factor or 0.0) * reference)) / size if size else 0.0


def _flat(case: Case, gradients: Mapping[str, Array]) -> Array:
    return np.concatenate([gradients[name].reshape(-1) for name in case.names])


def _backend(model: Any) -> str:
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(model, torch.nn.Module):
        return "torch"
    if jax is not None and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model)):
        return "jax"
    kind = f"{type(model).__module__}.{type(model).__name__}"
    raise TypeError(f"model: got a {kind}; expected an nn.Module, an nnx.Module or a pytree of JAX arrays.")
