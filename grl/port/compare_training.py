"""Train a PyTorch model and its port on the same batches, and tell chaos from a bug where they part."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flax import nnx

from grl.port.causes import Cause
from grl.port.compare import compare
from grl.port.runs.inputs import Feed, losses, to_numpy
from grl.port.runs.recording import Array
from grl.port.runs.torch_model import TorchModel, to_tensors
from grl.port.training_report import Gaps, TrainingReport
from grl.port.twins import Twins
from grl.weights.halves import half_of

__all__ = ["compare_training"]

_SAFETY = 1000.0  # two frameworks round more often than the one ULP by which the weights are moved
_FLOOR = 1e-12
_SERIES = ("losses", "parameters", "statistics")


def compare_training(
    torch_model: Any,
    nnx_model: Any,
    batches: Sequence[Any],
    *,
    loss: Any,
    optimizers: tuple[Any, Any],
    steps: int | None = None,
    layout: str | None = None,
    train: bool | None = True,
    names: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
) -> TrainingReport:
    """Train both on the same batches, in their own precision and in float64, and say where and why they part.

    In float64 two right models stay together but for rounding, whose growth is measured: a fifth training starts from
    PyTorch's weights moved by an ULP. Where the models are apart by more than a thousand times that, it is a bug.
    Both models stay as they are.

    Args:
        torch_model: an `nn.Module`.
        nnx_model: an `nnx.Module`; `copy_weights` has carried the weights across.
        batches: each (inputs, targets), a tuple or the list that a DataLoader makes, or inputs alone; inputs are an
            array, or a tuple of all arguments.
        loss: (PyTorch's, JAX's), each a function of (output, targets), or of the output; one function for both.
        optimizers: (PyTorch's, optax's). PyTorch's is a `torch.optim.Optimizer`, a scheduler that holds one, a tuple of
            both, or a function of parameters that makes any of these; a scheduler steps once a batch
            (`ReduceLROnPlateau` is given its loss).
        steps: how many; the batches start again where there are fewer. None: as many as there are batches.
        layout: of images, as for `compare`.
        train: the mode of both; None: the one that each is in.
        names: as for `compare`.
        ignore: causes that you know of and accept, as for `compare`; "batchnorm_variance" leaves the running variances
            out of the judgement.

    Returns:
        The report: `verdict` ("rounding" or "bug from step k"), `agrees`, `causes`, `show()`, `to_json()`, `plot()`.

    Raises:
        TypeError: a model is of neither framework.
        ValueError: there is no batch, or an argument cannot be taken.

    Example:
        `compare_training(torch_model, nnx_model, batches, loss=(torch_loss, jax_loss),
        optimizers=(torch.optim.Adam(torch_model.parameters(), 1e-3), optax.adam(1e-3)), steps=100).show()`
    """
    batches = [
        tuple(batch) if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None) for batch in batches
    ]
    if not batches:
        raise ValueError("batches: got none; expected a sequence of (inputs, targets).")
    steps = len(batches) if steps is None else steps
    lab = _Laboratory(torch_model, nnx_model, batches, loss, optimizers, layout, train, names, ignore)
    for step in range(steps):
        lab.step(step)
    bug = lab.bug_step()
    causes, reason = ((), "") if bug is None else lab.explain(bug)
    return TrainingReport(steps, bug, causes, reason, lab.losses, lab.gaps, tuple(lab.twins.notes))


class _Laboratory:
    """The trainings: PyTorch's and JAX's, as they are and in float64, and PyTorch's from weights moved by an ULP."""

    def __init__(
        self,
        torch_model: Any,
        nnx_model: Any,
        batches: Sequence[tuple[Any, Any]],
        loss: Any,
        optimizers: tuple[Any, Any],
        layout: str | None,
        train: bool | None,
        names: Mapping[str, str] | None,
        ignore: Collection[str],
    ) -> None:
        self.twins = Twins(torch_model, nnx_model, batches[0][0], loss, batches[0][1], layout, optimizers, train, names)
        self.batches, self.loss, self.optimizers = batches, loss, optimizers
        self.how: dict[str, Any] = {"layout": layout, "train": train, "names": names, "ignore": ignore}
        self.unjudged = "running_var" if "batchnorm_variance" in ignore else ""
        self.models = torch_model, nnx_model
        self.their_loss = loss[1] if isinstance(loss, tuple) else loss
        self.torch = {double: self.twins.torch(double) for double in (False, True)}
        self.jax = {double: self.twins.nnx(double) for double in (False, True)}
        self.moved = self.twins.torch(True)
        _move(self.moved)
        self.losses: dict[str, list[float]] = {name: [] for name in ("torch", "jax", "torch float64", "jax float64")}
        self.gaps = {name: Gaps([], [], [], []) for name in _SERIES}
        self._double: dict[str, list[float]] = {}
        self._chaos: dict[str, list[float]] = {}

    def step(self, step: int) -> None:
        """Take one step of all trainings and measure how far they are apart."""
        inputs, targets = self.batches[step % len(self.batches)]
        feed, targets = Feed.of(inputs, self.models[0], self.how["layout"]), to_numpy(targets)
        values = {
            **{
                ("torch", double): self._torch_step(self.torch[double], feed, targets, step) for double in (False, True)
            },
            **{
                ("jax", double): self.jax[double].train(
                    feed.nnx_alike if self.twins.alike else feed.nnx, targets, self.their_loss
                )
                for double in (False, True)
            },
            ("moved", True): self._torch_step(self.moved, feed, targets, step),
        }
        for name, key in zip(
            self.losses, [("torch", False), ("jax", False), ("torch", True), ("jax", True)], strict=True
        ):
            self.losses[name].append(values[key])
        states = {
            **{("torch", double): self.torch[double].state() for double in (False, True)},
            **{("jax", double): tuple(map(self.twins.in_torch, self.jax[double].state())) for double in (False, True)},
            ("moved", True): self.moved.state(),
        }
        for i, name in enumerate(_SERIES):
            found = {key: {"loss": np.array(values[key])} if name == "losses" else states[key][i - 1] for key in values}
            self._measure(name, found)

    def _torch_step(self, model: TorchModel, feed: Feed, targets: Any, step: int) -> float:
        """A step with the same dropout masks in each of PyTorch's trainings: only an ULP may part them."""
        loss, _ = losses(self.loss, targets)
        return model.train(to_tensors(feed.torch, model.dtype), loss(model.dtype), seed=step)

    def _measure(self, name: str, found: Mapping[tuple[str, bool], Mapping[str, Array]]) -> None:
        gaps = self.gaps[name]
        ours, theirs, moved = found["torch", True], found["jax", True], found["moved", True]
        gaps.single.append(_gap(found["torch", False], found["jax", False]))
        gaps.double.append(_gap(ours, theirs))
        gaps.rounding.append(max(_gap(found["torch", False], ours), _gap(found["jax", False], theirs)))
        gaps.chaos.append(_gap(ours, moved))
        for place in ours:
            if place in theirs and not (self.unjudged and place.endswith(self.unjudged)):
                one = {place: ours[place]}
                self._double.setdefault(place, []).append(_gap(one, theirs))
                self._chaos.setdefault(place, []).append(_gap(one, moved))

    def bug_step(self) -> int | None:
        """Return the first step, from 1, after which anything is apart by more than rounding; None if none is."""
        found = []
        for place, gaps in self._double.items():
            bounds = _SAFETY * np.maximum.accumulate(self._chaos[place]) + _FLOOR
            above = np.flatnonzero(~(np.array(gaps) <= bounds))
            if len(above):
                found.append(int(above[0]) + 1)
        return min(found, default=None)

    def explain(self, step: int) -> tuple[tuple[Cause, ...], str]:
        """Compare both models in PyTorch's state before a step, on its batch."""
        inputs, targets = self.batches[(step - 1) % len(self.batches)]
        before = self.twins.torch(True)
        for i in range(step - 1):
            data = self.batches[i % len(self.batches)]
            self._torch_step(before, Feed.of(data[0], self.models[0], self.how["layout"]), to_numpy(data[1]), i)
        fresh = self.twins.torch(False)  # with the optimiser as it was: its first step is the one that is known
        fresh.model.load_state_dict(before.model.state_dict())
        optimizers = fresh.optimizer, self.optimizers[1]
        report = compare(
            *(fresh.model, self._nnx_model(before), inputs),
            loss=self.loss,
            targets=targets,
            optimizers=optimizers,
            **self.how,
        )
        if report.first_divergence is None:
            return (), (
                f"In step {step} itself activations, gradients and a fresh optimiser's step agree: look at what the "
                f"optimisers keep from step to step, and at their schedules. {report.uncompared}".rstrip()
            )
        return report.first_divergence.causes, f"In step {step} {report}"

    def _nnx_model(self, ours: TorchModel) -> Any:
        """A copy of the nnx model with the weights of a PyTorch model."""
        model = nnx.clone(self.models[1])
        arrays = self.twins.pairing.to_nnx(
            {name: array for part in ours.state() for name, array in part.items()}, self.twins.weights.flattened
        )
        for name, slot in half_of("nnx").slots(model).items():
            if name in arrays:
                slot.write(slot.prepare(arrays[name]))
        return model


def _move(model: TorchModel) -> None:
    """Move each weight by a unit in the last place of float64, up or down."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            signs = torch.from_numpy(generator.choice([-1.0, 1.0], tuple(parameter.shape))).to(parameter.device)
            parameter.mul_(1 + signs * 2.0**-52)


def _gap(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    """The norm of a difference, relative to the norm."""
    names = [name for name in a if name in b]
    with np.errstate(all="ignore"):
        gap = sum(float(np.sum((a[n].astype(np.float64) - b[n]) ** 2)) for n in names)
        norm = sum(float(np.sum(a[n].astype(np.float64) ** 2)) for n in names)
        found = float(np.sqrt(gap / norm)) if norm else float(np.sqrt(gap))
    return found if np.isfinite(found) else float("inf")
