"""Run a PyTorch model and its port to nnx on the same arrays, and name the first place where they part."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from grl.port.explaining import explain
from grl.port.report import ParityReport
from grl.port.rows import judge
from grl.port.runs.recording import OUTPUT, Array, Recording
from grl.port.twins import Twins

__all__ = ["assert_parity", "compare"]


def compare(
    torch_model: Any,
    nnx_model: Any,
    inputs: Any,
    *,
    loss: Any = None,
    targets: Any = None,
    layout: str | None = None,
    optimizers: tuple[Any, Any] | None = None,
    train: bool | None = None,
    names: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
) -> ParityReport:
    """Compare a PyTorch model with its port to nnx, forward and backward, layer by layer.

    Both run on the same arrays, each in its own precision and in float64: what differs in float64 is no rounding, and
    how far float32 is from float64 is what rounding explains. The first place where they part is looked at by
    experiments: PyTorch's model runs again with one thing changed, until it gives what the nnx model gives.
    Both models stay as they are. Dropouts that are active on both sides are switched off, since their masks differ.

    Args:
        torch_model: an `nn.Module`.
        nnx_model: an `nnx.Module`; `copy_weights` has carried the weights across.
        inputs: an array, or a tuple of all arguments of the models: NumPy, torch or JAX. Integers stay integers.
        loss: (PyTorch's, JAX's): each a function of the model's output to a scalar, or of (output, targets); one
            function for both; None: a sum that depends on all of the output.
        targets: what the losses take as a second argument.
        layout: "NCHW" or "NHWC", how images come (or "NCHW" for any channels first); None: guessed from the first
            convolution. The nnx model gets them channels last, unless it only takes them channels first.
        optimizers: (PyTorch's, optax's): a `torch.optim.Optimizer` or a function of parameters that makes one, and a
            gradient transformation. A step of each is then compared.
        train: the mode of both; None: the one that each is in.
        names: PyTorch's name → nnx's, of layers that cannot be paired by themselves.
        ignore: causes that you know of and accept, such as "batchnorm_variance", which every `nnx.BatchNorm` brings
            along: what one of them explains is no divergence.

    Returns:
        The report; `agrees`, `first_divergence`, `show()`, `to_json(path)`, `plot(path)`.

    Raises:
        TypeError: a model is of neither framework.
        ValueError: there is no such layout.

    Example:
        `compare(torch_model, nnx_model, images, loss=(F.cross_entropy, jax_loss), targets=labels).show()`
    """
    twins = Twins(torch_model, nnx_model, inputs, loss, targets, layout, optimizers, train, names)
    double = twins.torch(True), twins.nnx(True)
    runs = double[0].run(), double[1].run()
    single = runs if twins.is_double else (twins.torch(False).run(), twins.nnx(False).run())
    rows = judge(twins, runs, single)
    divergence = None
    for row in (row for row in rows if not row.agrees):
        divergence = explain(row, rows, twins, double, runs)
        if not divergence.causes or divergence.causes[0] not in ignore:
            break
        divergence = None
    notes = list(twins.notes)
    if runs[1].narrow:
        notes.append("the nnx model rounds to float32 in float64 too, so that only more than that shows")
    theirs = twins.in_torch(runs[1].gradients, gradients=True)
    notes += _notes_on(runs, theirs)
    unmatched = twins.pairing.unmatched_torch, twins.pairing.unmatched_nnx
    return ParityReport(tuple(rows), divergence, tuple(notes), *unmatched, frozen=twins.frozen(runs[0], theirs))


def _notes_on(runs: tuple[Recording, Recording], theirs: Mapping[str, Array]) -> Iterator[str]:
    """What a run shows that no row does."""
    lost = [n for n, g in runs[0].gradients.items() if n in theirs and np.isnan(g).any() and np.isnan(theirs[n]).any()]
    if lost:
        yield f"gradients are NaN on both sides, and tell nothing: {', '.join(lost)}"
    counts = [len(run.activations[OUTPUT]) for run in runs]
    if counts[0] != counts[1]:
        yield f"the output is {counts[0]} arrays in PyTorch and {counts[1]} in nnx, of which the first are compared"


def assert_parity(torch_model: Any, nnx_model: Any, inputs: Any, **options: Any) -> None:
    """Raise unless a PyTorch model and its port agree: a line for your own tests.

    Of parameters that could not be compared a warning says so.

    Args:
        torch_model, nnx_model, inputs: as for `compare`.
        options: the others of `compare`.

    Raises:
        AssertionError: the sentence says where they part, by how much, and why.
        TypeError, ValueError: as `compare`.

    Example:
        `assert_parity(torch_model, nnx_model, images, train=False)`
    """
    report = compare(torch_model, nnx_model, inputs, **options)
    if not report.agrees:
        raise AssertionError(str(report))
    if report.uncompared:
        warnings.warn(report.uncompared, stacklevel=2)
