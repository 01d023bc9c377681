"""The diagnosis: does this layer reverse, and does it reverse in this model?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import jax
from flax import nnx
from torch import Tensor, nn

from grl import jax_impl, torch_impl
from grl.parity import (
    DomainGradientReport,
    ParameterGradient,
    Reversal,
    assert_reverses,
    domain_gradient_report,
    measure_reversal,
)


def torch_layers(x: Tensor) -> None:
    assert_type(measure_reversal(torch_impl.GRL(), x), Reversal)
    assert_type(measure_reversal(torch_impl.gradient_reversal, x), Reversal)
    assert_type(measure_reversal(lambda x: torch_impl.gradient_reversal(x, 0.5), x), Reversal)
    assert_type(assert_reverses(torch_impl.GRL(0.5), x, 0.5), None)


def jax_layers(x: jax.Array) -> None:
    assert_type(measure_reversal(jax_impl.GRL(), x), Reversal)
    assert_type(assert_reverses(jax_impl.gradient_reversal, x, coeff=1.0), None)


def torch_model(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    def label_loss(model: Any, batch: Any) -> Tensor:
        class_logits, _ = model(batch[0])
        return nn.functional.cross_entropy(class_logits, batch[1])

    def domain_loss(model: Any, batch: Any) -> Tensor:
        _, domain_logits = model(batch[0])
        return nn.functional.softplus(domain_logits).mean()

    report = domain_gradient_report(
        model, batch, label_loss=label_loss, domain_loss=domain_loss, features="backbone", coeff=0.5
    )
    assert_type(report, DomainGradientReport)
    assert_type(report.verdict, str)
    assert_type(report.records, tuple[ParameterGradient, ...])
    assert_type(report.whole.ratio, float | None)
    assert_type(report.to_dict(), dict[str, Any])
    assert_type(report.show(), None)
    assert_type(report.to_json(Path("report.json")), None)


def nnx_model(model: nnx.Module, batch: jax.Array) -> None:
    def loss(model: Any, batch: Any) -> jax.Array:
        return model(batch)[1].mean()

    assert_type(
        domain_gradient_report(
            model,
            batch,
            label_loss=loss,
            domain_loss=loss,
            total_loss=loss,
            features=lambda name: name.startswith("backbone"),
            layer="domain_classifier.reversal",
        ),
        DomainGradientReport,
    )
