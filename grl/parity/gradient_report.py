"""Does the reversal work in this model? The feature extractor's gradients, with the layer and without, in words."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grl.parity.reversal import CLIPPED, CUT, half_of, never_called, signed

__all__ = ["DomainGradientReport", "ParameterGradient", "domain_gradient_report", "explain_chance"]

Array = NDArray[Any]

_SCALE = 4.0  # enough for any clipping to show, little enough for float16
_SMALL, _LARGE = 1e-3, 1e2  # of the domain gradient's norm to the label gradient's
_TOLERANCE = 1e-2  # of a ratio or a norm: room for float16
_FAINT = 1e-2  # a label gradient this small (a label loss that is learnt) is no measure of what is large


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
        verdict: "ok", "skipped", "sign doubled", "vanished", "exploded", "wrong coefficient", "not linear" or "not
            finite".
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

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write all of it to a JSON file; numbers that are not finite become null."""
        with open(fspath(path), "w", encoding="utf-8") as file:
            json.dump(_valid(asdict(self)), file, indent=1)


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

    The gradients are computed four times on one batch, with the same random numbers; the model stays as it is.

    Args:
        model: your own, an `nn.Module` or `nnx.Module`; in JAX also a pytree of parameters, as Linen and Equinox have.
        batch: whatever the losses take.
        label_loss: a function of (model, batch) to the label loss, a scalar.
        domain_loss: a function of (model, batch) to the domain loss, as it is added to the label loss.
        features: the feature extractor: the name of the model's attribute, or a predicate of a parameter's name.
        layer: the reversal, if it is not one of grl's: a submodule, its name, its class, or a global function.
        coeff: λ, to be compared; None: any above 0.
        total_loss: the loss that is trained on, to see whether the domain loss is added. Without it a domain loss below
            0 counts as subtracted, since a cross entropy never is; give it where yours may be (Wasserstein critics).

    Returns:
        The figures by parameter, and the verdict.

    Raises:
        TypeError: the model belongs to neither framework.
        ValueError: there are no such features, or no such layer.

    Example:
        >>> import torch
        >>> from grl.torch_impl import DANN
        >>> from grl.torch_impl.dann import MLP
        >>> model = DANN(MLP(2, (8,)), num_classes=3)
        >>> print(domain_gradient_report(
        ...     model,
        ...     torch.randn(16, 2),
        ...     label_loss=lambda model, x: model(x)[0].square().mean(),
        ...     domain_loss=lambda model, x: model(x, 0.5)[1].square().mean(),
        ...     features="backbone",
        ... ))
        ok: the domain gradient reaches the feature extractor with the factor −0.5.
    """
    half = half_of(_backend(model))
    chosen = features if callable(features) else lambda name: name.startswith(f"{features}.") or name == features
    wanted = [name for name in half.names(model) if chosen(name)]
    if not wanted:
        known = ", ".join(half.names(model)[:4])
        raise ValueError(f"features: got {features!r}, which names no parameter; accepted is a part of {known}, ….")

    def gradients(loss: Callable[[Any, Any], Any], **how: Any) -> tuple[float, dict[str, Array], int]:
        return half.gradients(loss, model, batch, wanted, **how)  # type: ignore[no-any-return]  # the half is untyped

    label_value, label, _ = gradients(label_loss)
    domain_value, domain, _ = gradients(domain_loss)
    _, scaled, _ = gradients(domain_loss, scale=1 / _SCALE)
    _, plain, runs = gradients(domain_loss, bypass=True, layer=layer)
    added = domain_value >= 0
    if total_loss is not None:
        rest = {name: gradient - label[name] for name, gradient in gradients(total_loss)[1].items()}
        added = (_ratio(_flat(rest), _flat(domain)) or 0.0) >= 0
    whole = _record("all together", _flat(label), _flat(domain), _flat(plain))
    cause = never_called(half, model)
    with np.errstate(all="ignore"):
        verdict, reason = _judge(whole, *map(_flat, (domain, plain, scaled)), runs > 0, added, coeff, cause)
    records = tuple(_record(name, label[name], domain[name], plain[name]) for name in wanted)
    return DomainGradientReport(verdict, reason, records, whole, label_value, domain_value)


def explain_chance(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Explain a domain loss that stayed within 1 % of ln 2 for at least 100 steps and a fifth of all.

    Args:
        history: records of `step` and `domain_loss`, as in metrics.json.

    Returns:
        One or two sentences; None if there is nothing to explain.
    """
    longest: tuple[int, int] = (0, 0)  # the records from the one up to before the other
    start = 0
    for end in range(1, len(history) + 1):
        loss = history[end - 1]["domain_loss"]
        if loss is None or abs(loss - math.log(2)) > 0.01 * math.log(2):
            start = end
        elif end - start > longest[1] - longest[0]:
            longest = start, end
    start, end = longest
    if start == end:
        return None
    first, last = history[start]["step"], history[end - 1]["step"]
    if last - first < max(100, history[-1]["step"] / 5):
        return None
    seen = f"From step {first} to {last} the domain loss stayed within 1 % of ln 2 = 0.693, which is chance"
    if start == 0:
        return (
            f"{seen}, and so it was from the first record on: the domain classifier learns nothing, since its features "
            "carry nothing of the domain, its learning rate is too low, or its input is blocked. Compare with "
            "--schedule constant:-1, where it has to fall."
        )
    return (
        f"{seen}: after it had been elsewhere, the domain classifier can no longer tell the domains apart. That is the "
        "goal, as long as the source accuracy holds; if that falls too, lower λ (--schedule linear:0:0.3)."
    )


def _judge(
    whole: ParameterGradient,
    domain: Array,
    plain: Array,
    scaled: Array,
    ran: bool,
    added: bool,
    coeff: float | None,
    cause: str,
) -> tuple[str, str]:
    """Return the verdict and its reason: whether there is a gradient, then its sign, then its size."""
    ratio, size, label_size = whole.ratio, whole.domain_norm, whole.label_norm
    if not math.isfinite(size + label_size):
        both = not math.isfinite(float(np.linalg.norm(plain)) + label_size)
        where = "the losses give it without the layer too" if both else "it arises in the layer"
        return "not finite", f"NaN or infinity reaches the feature extractor: {where}."
    if np.linalg.norm(_SCALE * scaled - domain) > _TOLERANCE * size:
        return "not linear", (
            f"a quarter of the domain loss gives another gradient than a quarter of it: {CLIPPED} of the layer."
        )
    if not ratio:
        both = "without it there is one" if ratio == 0 else "nor is there one without it"
        return "vanished", (
            f"no gradient of the domain loss reaches the feature extractor through the layer, {both}: {CUT}"
            f"{'' if ratio == 0 else ', or the loss is flat'}."
        )
    factor = f"the factor {signed(ratio)}"
    expected = coeff is not None and abs(ratio + coeff) <= _TOLERANCE * abs(coeff)
    if ratio > 0 and not ran:
        return "skipped", (
            f"the domain gradient reaches the feature extractor with {factor} and no reversal ran: the domain"
            f" classifier is fed the features themselves{f', or {cause}' if cause else ''}; name a layer that is not"
            " grl's by layer=."
        )
    if not added and ratio < 0:
        return "sign doubled", (
            f"the layer reverses ({factor}) and the domain loss is subtracted as well, so that the features get better"
            " at telling the domains apart: add the losses."
        )
    if ratio > 0 and not expected:
        return "sign doubled", (
            f"a reversal ran, and yet the domain gradient reaches the feature extractor with {factor}: there are two"
            " layers one after the other, or λ is negative."
        )
    if coeff is not None and not expected:
        return "wrong coefficient", (
            f"the domain gradient reaches the feature extractor with {factor}, expected is {signed(-coeff)}: the layer"
            " holds another λ, or there is more than one layer."
        )
    if size > _LARGE * max(label_size, _FAINT):
        return "exploded", (
            f"the domain gradient's norm is {size:.3g}, the label gradient's {label_size:.3g}, with {factor}: clip the"
            " gradients to a global norm of 1, or lower λ."
        )
    if size < _SMALL * label_size:
        why = "λ is near 0, as at the start of a ramp" if abs(ratio) < 0.1 else "the domain loss is flat"
        return "vanished", (
            f"the domain gradient's norm is {size:.3g}, the label gradient's {label_size:.3g}, with {factor}: {why}."
        )
    mixed = np.linalg.norm(domain - ratio * plain) > _TOLERANCE * size
    each = " on average; it differs between samples or parameters" if mixed else ""
    return "ok", f"the domain gradient reaches the feature extractor with {factor}{each}."


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


def _flat(gradients: Mapping[str, Array]) -> Array:
    return np.concatenate([gradient.reshape(-1) for gradient in gradients.values()])


def _backend(model: Any) -> str:
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(model, torch.nn.Module):
        return "torch"
    if jax is not None and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model)):
        return "jax"
    kind = f"{type(model).__module__}.{type(model).__name__}"
    raise TypeError(f"model: got a {kind}; accepted is an nn.Module, an nnx.Module or a pytree of JAX arrays.")


def _valid(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _valid(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
