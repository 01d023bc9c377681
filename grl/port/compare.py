"""Run a PyTorch model and its port to nnx on the same arrays, and name the first place where they diverge."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from grl.port.correspondence import Correspondence
from grl.port.explaining import Models, explain
from grl.port.findings import Divergence, Row
from grl.port.report import ParityReport
from grl.port.rows import AllRuns, Runs, judge
from grl.port.runs.recording import OUTPUT, Array
from grl.port.setup import Losses, Optimizers, Setup
from grl.port.twins import Twins, twins_of
from grl.substitution import taking_turns

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

__all__ = ["assert_parity", "compare", "compare_setup"]

_PERTURBED = 2
"""How many runs with moved numbers measure the rounding: in one alone a single number may happen to stay."""


def compare(
    torch_model: nn.Module,
    nnx_model: nnx.Module,
    inputs: object,
    *,
    loss: Losses = None,
    targets: object = None,
    layout: str | None = None,
    optimizers: Optimizers | None = None,
    train: bool | None = None,
    names: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
) -> ParityReport:
    """Compare a PyTorch model with its port to nnx, forward and backward, layer by layer.

    Both models run on the same arrays, in their own precision and in float64. Rounding is measured: by the distance
    between float32 and float64, and by runs in float64 whose numbers are moved by a unit in the last place. A larger
    difference is a divergence. Experiments explain the first one: PyTorch's model runs again with one thing changed,
    until its result is the nnx model's. Both models stay as they are. Dropouts that are active on both sides are
    switched off, since their masks differ.

    While it runs, PyTorch's default dtype is float64 in the whole process: no other thread may create tensors without
    a dtype meanwhile. Other threads see their own `jax.numpy.float32`; a second comparison waits for the first.

    Args:
        torch_model: an `nn.Module`.
        nnx_model: an `nnx.Module` into which `copy_weights` has copied the weights.
        inputs: an array, or a tuple of all arguments of the models: NumPy, torch or JAX. Integers stay integers.
        loss: (PyTorch's, JAX's): each a function of the model's output to a scalar, or of (output, targets); one
            function for both; None: a sum that depends on every number of the output.
        targets: the second argument of the losses.
        layout: "NCHW" or "NHWC", the layout of images (or "NCHW" for any data with channels first); None: guessed from
            the first convolution. The nnx model gets images with channels last, unless it only takes channels first.
        optimizers: (PyTorch's, optax's): a `torch.optim.Optimizer` or a function of parameters that makes one, and a
            gradient transformation. One step of each is compared as well.
        train: the mode of both models; None: the mode that each is in.
        names: PyTorch's name → nnx's, for layers that cannot be paired automatically.
        ignore: causes that you know and accept, such as "batchnorm_variance", which every `nnx.BatchNorm` brings
            along. A difference that one of them explains is no divergence.

    Returns:
        The report; `agrees`, `first_divergence`, `show()`, `to_json(path)`, `plot(path)`.

    Raises:
        TypeError: a model belongs to neither framework.
        ValueError: `layout` is unknown.

    Example:
        `compare(torch_model, nnx_model, images, loss=(F.cross_entropy, jax_loss), targets=labels).show()`
    """
    return compare_setup(
        Setup(
            torch_model=torch_model,
            nnx_model=nnx_model,
            inputs=inputs,
            loss=loss,
            targets=targets,
            layout=layout,
            optimizers=optimizers or (None, None),
            train=train,
            names=names,
            ignore=frozenset(ignore),
        )
    )


@taking_turns()
def compare_setup(setup: Setup) -> ParityReport:
    """Compare two models as `compare` does."""
    twins = twins_of(setup)
    models = Models(twins.torch(True), twins.nnx(True))
    double = Runs(models.torch.run(), models.nnx.run())
    single = double if twins.is_double else Runs(twins.torch(False).run(), twins.nnx(False).run())
    perturbed = [Runs(models.torch.perturbed(seed), models.nnx.perturbed(seed)) for seed in range(_PERTURBED)]
    runs = AllRuns(double, single, tuple(perturbed))
    rows = judge(twins.correspondence, runs)
    nnx_gradients = twins.correspondence.in_torch(double.nnx.gradients, gradients=True)
    return ParityReport(
        rows=tuple(rows),
        first_divergence=_first_divergence(rows, twins, models, double),
        notes=(*twins.notes, *_notes_on(double, nnx_gradients)),
        unmatched_torch=twins.correspondence.pairing.unmatched_torch,
        unmatched_nnx=twins.correspondence.pairing.unmatched_nnx,
        frozen=tuple(_frozen(setup.torch_model, twins.correspondence, double, nnx_gradients)),
    )


def _first_divergence(rows: list[Row], twins: Twins, models: Models, runs: Runs) -> Divergence | None:
    """Explain the first row that differs and that no accepted cause explains."""
    for row in rows:
        if not row.agrees:
            divergence = explain(row, rows, twins, models, runs)
            if not divergence.causes or divergence.causes[0] not in twins.setup.ignore:
                return divergence
    return None


def _frozen(
    torch_model: nn.Module, correspondence: Correspondence, runs: Runs, nnx_gradients: Mapping[str, Array]
) -> Iterator[str]:
    """Yield the names of PyTorch's parameters that have a counterpart but are trained on only one side."""
    for name, _ in torch_model.named_parameters():
        has_counterpart = name not in correspondence.pairing.unmatched_torch and "bias_hh" not in name
        if has_counterpart and (name in runs.torch.parameters) != (name in nnx_gradients):
            yield name


def _notes_on(runs: Runs, nnx_gradients: Mapping[str, Array]) -> Iterator[str]:
    """Yield what a run shows that no row does."""
    if runs.nnx.narrow:
        yield "the nnx model rounds to float32 in float64 too, so that only larger differences show"
    if runs.nnx.narrow_step:
        yield "the optax optimiser computes in float32 in float64 too, so that only larger differences of a step show"
    lost = [
        name
        for name, gradient in runs.torch.gradients.items()
        if name in nnx_gradients and np.isnan(gradient).any() and np.isnan(nnx_gradients[name]).any()
    ]
    if lost:
        yield f"gradients are NaN on both sides, and tell nothing: {', '.join(lost)}"
    counts = [len(run.activations[OUTPUT]) for run in runs]
    if counts[0] != counts[1]:
        yield f"the output is {counts[0]} arrays in PyTorch and {counts[1]} in nnx, of which the first are compared"


def assert_parity(torch_model: nn.Module, nnx_model: nnx.Module, inputs: object, **options: Any) -> None:
    """Raise unless a PyTorch model and its port agree: one line for your own tests.

    It warns of parameters that could not be compared.

    Args:
        torch_model, nnx_model, inputs: as for `compare`.
        options: the other arguments of `compare`.

    Raises:
        AssertionError: the models diverge; the message says where, by how much, and why.
        TypeError, ValueError: as `compare`.

    Example:
        `assert_parity(torch_model, nnx_model, images, train=False)`
    """
    report = compare(torch_model, nnx_model, inputs, **options)
    if not report.agrees:
        raise AssertionError(str(report))
    if report.uncompared:
        warnings.warn(report.uncompared, stacklevel=2)
