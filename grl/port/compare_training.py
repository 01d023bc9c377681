"""Train a PyTorch model and its port on the same batches, and tell the growth of rounding from a bug."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from flax import nnx

from grl.arrays import Array
from grl.port.causes import Cause
from grl.port.compare import compare_setup
from grl.port.runs.inputs import Feed, losses, to_numpy
from grl.port.runs.nnx_model import JaxModel
from grl.port.runs.torch_arrays import to_tensors
from grl.port.runs.torch_model import TorchModel
from grl.port.setup import Losses, Optimizers, Setup
from grl.port.training_report import Gaps, TrainingReport
from grl.port.twins import Twins, twins_of
from grl.substitution import taking_turns
from grl.weights.halves import half_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["compare_training"]

_SAFETY = 1000.0
"""Two frameworks round more often than the one unit in the last place by which the weights are moved."""

_SAFETY_IN_FLOAT32 = 10.0
"""The same for a step that is computed in float32: a few numbers of it are, and not each."""

_FLOOR = 1e-12
"""A relative gap that is always allowed."""

_SERIES = ("losses", "parameters", "statistics")


@taking_turns()
def compare_training(
    torch_model: nn.Module,
    nnx_model: nnx.Module,
    batches: Sequence[Any],
    *,
    loss: Losses,
    optimizers: Optimizers,
    steps: int | None = None,
    layout: str | None = None,
    train: bool | None = True,
    names: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
) -> TrainingReport:
    """Train both models on the same batches, in their own precision and in float64, and name where they diverge.

    In float64 a right pair differs only by rounding. The growth of rounding is measured: a fifth training starts from
    PyTorch's weights moved by one unit in the last place. A gap above a thousand times that is a bug. Both models stay
    as they are. What `compare` says about other threads holds here as well.

    Args:
        torch_model: an `nn.Module`.
        nnx_model: an `nnx.Module` into which `copy_weights` has copied the weights.
        batches: each (inputs, targets), a tuple or the list that a DataLoader makes, or inputs alone; inputs are an
            array, or a tuple of all arguments.
        loss: (PyTorch's, JAX's), each a function of (output, targets), or of the output; one function for both.
        optimizers: (PyTorch's, optax's). PyTorch's is a `torch.optim.Optimizer`, a scheduler that holds one, a tuple of
            both, or a function of parameters that makes any of these. A scheduler steps once per batch
            (`ReduceLROnPlateau` gets the loss).
        steps: the number of steps; the batches repeat if there are fewer. None: as many as there are batches.
        layout: of images, as for `compare`.
        train: the mode of both models; None: the mode that each is in.
        names: as for `compare`.
        ignore: causes that you know and accept, as for `compare`; "batchnorm_variance" leaves the running variances
            out of the verdict.

    Returns:
        The report: `verdict` ("rounding" or "bug from step k"), `agrees`, `causes`, `show()`, `to_json()`, `plot()`.

    Raises:
        TypeError: a model belongs to neither framework.
        ValueError: `batches` is empty, or an argument is not accepted.

    Example:
        `compare_training(torch_model, nnx_model, batches, loss=(torch_loss, jax_loss),
        optimizers=(torch.optim.Adam(torch_model.parameters(), 1e-3), optax.adam(1e-3)), steps=100).show()`
    """
    pairs = [_Batch.of(batch) for batch in batches]
    if not pairs:
        raise ValueError("batches: got none; expected a sequence of (inputs, targets).")
    steps = len(pairs) if steps is None else steps
    setup = Setup(
        torch_model=torch_model,
        nnx_model=nnx_model,
        inputs=pairs[0].inputs,
        loss=loss,
        targets=pairs[0].targets,
        layout=layout,
        optimizers=optimizers,
        train=train,
        names=names,
        ignore=frozenset(ignore),
    )
    twins = twins_of(setup)
    trainings = _Trainings(twins, pairs)
    for step in range(steps):
        trainings.step(step)
    bug_step = trainings.gaps.bug_step()
    causes, reason = ((), "") if bug_step is None else _explained(twins, pairs, bug_step)
    return TrainingReport(steps, bug_step, causes, reason, trainings.losses, trainings.gaps.series, twins.notes)


class _Batch(NamedTuple):
    inputs: Any
    targets: Any

    @classmethod
    def of(cls, batch: Any) -> _Batch:
        if isinstance(batch, tuple | list) and len(batch) == 2:
            return cls(*batch)
        return cls(batch, None)


class _State(NamedTuple):
    """What a training has reached, by PyTorch's names and in its layouts."""

    losses: Mapping[str, Array]
    parameters: Mapping[str, Array]
    statistics: Mapping[str, Array]


class _Trainings:
    """Five trainings: PyTorch's and JAX's, each in its own precision and in float64, and PyTorch's from moved weights.

    Args:
        twins: the models.
        batches: what they train on.
    """

    def __init__(self, twins: Twins, batches: Sequence[_Batch]) -> None:
        self.twins, self.batches = twins, batches
        self.torch, self.torch_double = twins.torch(False), twins.torch(True)
        self.jax, self.jax_double = twins.nnx(False), twins.nnx(True)
        self.moved = twins.torch(True)
        in_float32 = self.jax_double.steps_in_float32()
        _move(self.moved, 2.0**-24 if in_float32 else 2.0**-52)
        self.losses: dict[str, list[float]] = {name: [] for name in ("torch", "jax", "torch float64", "jax float64")}
        unjudged = "running_var" if "batchnorm_variance" in twins.setup.ignore else ""
        self.gaps = _Gaps(_SAFETY_IN_FLOAT32 if in_float32 else _SAFETY, unjudged)

    def step(self, step: int) -> None:
        """Take one step in each training and measure how far they are apart."""
        batch = self.batches[step % len(self.batches)]
        single = self._torch_state(self.torch, batch, step), self._jax_state(self.jax, batch)
        double = self._torch_state(self.torch_double, batch, step), self._jax_state(self.jax_double, batch)
        moved = self._torch_state(self.moved, batch, step)
        for name, state in zip(self.losses, (*single, *double), strict=True):
            self.losses[name].append(float(state.losses["loss"]))
        self.gaps.measure(single, double, moved)

    def _torch_state(self, model: TorchModel, batch: _Batch, step: int) -> _State:
        loss = _torch_step(self.twins, model, batch, step)
        return _State({"loss": np.array(loss)}, *model.state())

    def _jax_state(self, model: JaxModel, batch: _Batch) -> _State:
        setup = self.twins.setup
        inputs = self.twins.nnx_inputs(Feed.of(batch.inputs, setup.torch_model, setup.layout))
        loss_function = setup.loss[1] if isinstance(setup.loss, tuple) else setup.loss
        assert loss_function is not None
        loss = model.train(inputs, to_numpy(batch.targets), loss_function)
        return _State({"loss": np.array(loss)}, *map(self.twins.correspondence.in_torch, model.state()))


def _torch_step(twins: Twins, model: TorchModel, batch: _Batch, step: int) -> float:
    """Take a step of PyTorch's, with the same dropout masks in each training; return the loss."""
    setup = twins.setup
    feed = Feed.of(batch.inputs, setup.torch_model, setup.layout)
    loss, _ = losses(setup.loss, to_numpy(batch.targets))
    return model.train(to_tensors(feed.torch, model.dtype), loss(model.dtype), seed=step)


class _Gaps:
    """How far the trainings are apart, step by step.

    Args:
        safety: the factor of the measured growth of rounding up to which a gap is rounding.
        unjudged: the end of the names of statistics that are left out of the verdict; "" for none.
    """

    def __init__(self, safety: float, unjudged: str) -> None:
        self.safety, self.unjudged = safety, unjudged
        self.series = {name: Gaps([], [], [], []) for name in _SERIES}
        self._double: dict[str, list[float]] = {}
        self._chaos: dict[str, list[float]] = {}

    def measure(self, single: tuple[_State, _State], double: tuple[_State, _State], moved: _State) -> None:
        """Add a step.

        Args:
            single: PyTorch's and JAX's training in the models' own precision.
            double: both in float64.
            moved: PyTorch's in float64, from moved weights.
        """
        for name, gaps in self.series.items():
            torch_single, jax_single = (getattr(state, name) for state in single)
            torch_double, jax_double = (getattr(state, name) for state in double)
            torch_moved = getattr(moved, name)
            gaps.single.append(_gap(torch_single, jax_single))
            gaps.double.append(_gap(torch_double, jax_double))
            gaps.rounding.append(max(_gap(torch_single, torch_double), _gap(jax_single, jax_double)))
            gaps.chaos.append(_gap(torch_double, torch_moved))
            for place, array in torch_double.items():
                if place in jax_double and not (self.unjudged and place.endswith(self.unjudged)):
                    self._double.setdefault(place, []).append(_gap({place: array}, jax_double))
                    self._chaos.setdefault(place, []).append(_gap({place: array}, torch_moved))

    def bug_step(self) -> int | None:
        """Return the first step, from 1, after which an array is apart by more than rounding; None if none is."""
        first_steps = []
        for place, gaps in self._double.items():
            bounds = self.safety * np.maximum.accumulate(self._chaos[place]) + _FLOOR
            above = np.flatnonzero(~(np.array(gaps) <= bounds))
            if len(above):
                first_steps.append(int(above[0]) + 1)
        return min(first_steps, default=None)


def _explained(twins: Twins, batches: Sequence[_Batch], step: int) -> tuple[tuple[Cause, ...], str]:
    """Compare both models in the state that PyTorch's has before a step, on the batch of the step."""
    before = twins.torch(True)
    for number in range(step - 1):
        _torch_step(twins, before, batches[number % len(batches)], number)
    fresh = twins.torch(False)  # its optimiser is as the user made it: a rule of a first step is known
    fresh.model.load_state_dict(before.model.state_dict())
    batch = batches[(step - 1) % len(batches)]
    report = compare_setup(
        replace(
            twins.setup,
            torch_model=fresh.model,
            nnx_model=_nnx_model_in_state(twins, before),
            inputs=batch.inputs,
            targets=batch.targets,
            optimizers=(fresh.optimizer, twins.setup.optimizers[1]),
        )
    )
    if report.first_divergence is None:
        return (), (
            f"In step {step} itself activations, gradients and a fresh optimiser's step agree: look at what the "
            f"optimisers keep from step to step, and at their schedules. {report.uncompared}".rstrip()
        )
    return report.first_divergence.causes, f"In step {step} {report}"


def _nnx_model_in_state(twins: Twins, torch_model: TorchModel) -> nnx.Module:
    """Return a copy of the nnx model with the weights and statistics of a PyTorch model."""
    model = nnx.clone(twins.setup.nnx_model)
    parameters, statistics = torch_model.state()
    arrays = twins.correspondence.in_nnx(parameters | statistics)
    for name, slot in half_of("nnx").slots(model).items():
        if name in arrays:
            slot.write(slot.prepare(arrays[name]))
    return model


def _move(model: TorchModel, unit: float) -> None:
    """Move each weight up or down by a unit, relative to itself."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            signs = torch.from_numpy(generator.choice([-1.0, 1.0], tuple(parameter.shape))).to(parameter.device)
            parameter.mul_(1 + signs * unit)


def _gap(arrays: Mapping[str, Array], others: Mapping[str, Array]) -> float:
    """The norm of the difference, relative to the norm; over the arrays that both have."""
    names = [name for name in arrays if name in others]
    with np.errstate(all="ignore"):
        difference = sum(_square(arrays[name].astype(np.float64) - others[name]) for name in names)
        norm = sum(_square(arrays[name].astype(np.float64)) for name in names)
        gap = float(np.sqrt(difference / norm)) if norm else float(np.sqrt(difference))
    return gap if np.isfinite(gap) else float("inf")


def _square(array: Array) -> float:
    return float(np.sum(array**2))
