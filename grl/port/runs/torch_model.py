"""The PyTorch half of a comparison: run a model, record it, and run it again with one function changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils._pytree import tree_map

from grl.diagnosis.torch_gradients import undone
from grl.port.runs.perturbation import Perturbation, moved
from grl.port.runs.recording import LOSS, OUTPUT, Array, Dropout, Key, Recording, RunSettings
from grl.port.runs.torch_arrays import floats, to_numpy, to_tensors
from grl.port.runs.torch_functions import Args, Call, Change, Function, Functions, Kwargs
from grl.port.runs.torch_layers import ReachedError, count_reversals, entered, recording
from grl.port.runs.torch_optimizer import made_with, step_of

__all__ = ["TorchModel"]


class TorchModel:
    """A copy of a model in one precision, which runs as often as it is asked to, each time from the same state.

    Args:
        model: the user's, which stays as it is.
        inputs: the arguments of the call: NumPy arrays, or whatever else the model takes.
        loss: dtype -> a function of the output to a scalar tensor.
        settings: precision, mode, and which layers to record.
        optimizer: over the model's parameters: a `torch.optim.Optimizer`, a scheduler that holds one, a tuple of both,
            or a function of parameters that makes any of these; None: no step.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[object],
        loss: Callable[[torch.dtype], Callable[[Any], Tensor]],
        settings: RunSettings,
        optimizer: Any = None,
    ) -> None:
        self.settings = settings
        self.model, self.optimizer, self.scheduler = made_with(model, optimizer)
        if settings.train is not None:
            self.model.train(settings.train)
        if settings.double:
            self._widen()
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        dtypes = [p.dtype for p in self.model.parameters() if p.is_floating_point()]
        self.dtype = torch.float64 if settings.double else (dtypes or [torch.float32])[0]
        self.inputs = to_tensors(inputs, self.dtype, device)
        self.loss = loss(self.dtype)

    def _widen(self) -> None:
        self.model.double()
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.is_complex():  # `double` leaves them as they are
                tensor.data = tensor.data.to(torch.complex128)
        for state in self.optimizer.state.values() if self.optimizer is not None else ():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.is_floating_point() and name != "step":
                    state[name] = value.double()

    def run(self) -> Recording:
        """Run forward and backward, and the optimiser's step if there is one."""
        return self._run(None)

    def perturbed(self, seed: int) -> Recording:
        """Run with inputs, parameters, the results of functions and cotangents moved by a unit in the last place."""
        perturbation = Perturbation(seed)
        inputs, self.inputs = self.inputs, tree_map(_mover(perturbation), self.inputs)
        arrays = {name: to_numpy(parameter) for name, parameter in self.model.named_parameters()}
        try:
            with self.with_parameters({name: moved(array, perturbation.numpy) for name, array in arrays.items()}):
                return self._run(perturbation)
        finally:
            self.inputs = inputs

    def _run(self, perturbation: Perturbation | None) -> Recording:
        seen = Recording()
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with undone(self.model), self._functions(perturbation=perturbation) as functions, torch.enable_grad():
            with recording(self.model, self.settings.watched, seen):
                value = self._forward(seen)
            seen.dropouts = functions.dropouts
            gradients = _differentiated(value, list(parameters.values()))
            seen.parameters = list(parameters)
            seen.reversals = count_reversals(value.grad_fn)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:  # copied: an optimiser may clip it in place
                    seen.gradients[name] = to_numpy(gradient, copied=True)
            seen.statistics = self._statistics()
            if self.optimizer is not None:
                seen.updates = step_of(self.optimizer, parameters, gradients)
        return seen

    def dropouts(self) -> list[Dropout]:
        """Return the dropouts that are active, in the order of their calls."""
        with undone(self.model), self._functions() as functions, torch.no_grad():
            self.model(*_copied(self.inputs))
        return functions.dropouts

    def activation(
        self, key: Key, changes: Mapping[int, Change] | None = None, without_dropout: bool = False
    ) -> list[Array]:
        """Return the result of one call of a layer, or the output, or the loss.

        Args:
            key: the call.
            changes: what replaces functions before it.
            without_dropout: whether dropout is off in any case.
        """
        seen = Recording()
        with (
            undone(self.model),
            self._functions(changes, without_dropout=without_dropout),
            torch.no_grad(),
            recording(self.model, [key[0]], seen, key),
            suppress(ReachedError),
        ):
            self._forward(seen)
        return seen.activations[key]

    def statistics(self, changes: Mapping[int, Change] | None = None) -> dict[str, Array]:
        """Return the running statistics after a forward pass in which functions are changed."""
        with undone(self.model), self._functions(changes), torch.no_grad():
            self.model(*_copied(self.inputs))
            return self._statistics()

    def _statistics(self) -> dict[str, Array]:
        return {name: to_numpy(b, copied=True) for name, b in self.model.named_buffers() if b.is_floating_point()}

    def calls(self, until: Key | None = None) -> list[tuple[Call, int]]:
        """Return all calls of functions up to a call of a layer, each with how many watched layers had ended before."""
        seen, calls = Recording(), list[tuple[Call, int]]()
        inside: list[str] = []

        def note(call: Call) -> None:
            calls.append((call, len(seen.activations)))

        watched = self.settings.watched if until is None else (*self.settings.watched, until[0])
        with (
            undone(self.model),
            self._functions(note=note, inside=inside),
            torch.no_grad(),
            entered(self.model, inside),
            recording(self.model, watched, seen, until),
            suppress(ReachedError),
        ):
            self._forward(seen)
        return calls

    def gradients_by_edge(
        self, factor: float, indices: Sequence[int], wanted: Sequence[str]
    ) -> Iterator[dict[str, Array]]:
        """Yield, for each call of a function, the gradients when the cotangent of its first tensor is scaled.

        Args:
            factor: what the cotangent is multiplied by.
            indices: the numbers of the calls.
            wanted: the names of the parameters.
        """
        scaled = _ScaledEdge(factor)
        parameters = [dict(self.model.named_parameters())[name] for name in wanted]
        changes = {index: _Watched(scaled, index) for index in indices}
        with undone(self.model), self._functions(changes), torch.enable_grad():
            value = self.loss(self.model(*_copied(self.inputs)))
            for index in indices:
                scaled.index = index
                gradients = _differentiated(value, parameters)
                yield {name: to_numpy(g) for name, g in zip(wanted, gradients, strict=True) if g is not None}

    def parameter(self, name: str) -> Array:
        """Return a parameter or buffer as it is."""
        return to_numpy(self._places()[name], copied=True)

    def put(self, arrays: Mapping[str, Array]) -> None:
        """Put other numbers into parameters and buffers."""
        places = self._places()
        with torch.no_grad():
            for name, array in arrays.items():
                places[name].copy_(torch.from_numpy(np.array(array)))

    @contextmanager
    def with_parameters(self, arrays: Mapping[str, Array]) -> Iterator[None]:
        """Put other numbers into parameters and buffers for the time of the block."""
        places = self._places()
        before = {name: places[name].detach().clone() for name in arrays}
        try:
            self.put(arrays)
            yield
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    places[name].copy_(tensor)

    def _places(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _forward(self, seen: Recording) -> Tensor:
        output = self.model(*_copied(self.inputs))
        seen.activations[OUTPUT] = floats(output)
        value = self.loss(output)
        seen.activations[LOSS] = floats(value)
        return value

    def train(self, inputs: Sequence[Any], loss: Callable[[Any], Tensor], seed: int) -> float:
        """Take a step of training, which the model keeps; return the loss before it.

        Args:
            inputs: the model's arguments.
            loss: a function of the output.
            seed: of PyTorch's random numbers in this step, whose state outside stays as it is.
        """
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        devices = {p.device.index or 0 for p in self.model.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=sorted(devices)), self._functions(), torch.enable_grad():
            torch.manual_seed(seed)
            value = loss(self.model(*_copied(inputs)))
        value.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            watched = (value.detach(),) if isinstance(self.scheduler, ReduceLROnPlateau) else ()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it does not know the copy of its optimiser
                self.scheduler.step(*watched)
        return float(value.detach())

    def state(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return parameters, frozen ones too, and running statistics as they are now."""
        parameters = {name: to_numpy(p, copied=True) for name, p in self.model.named_parameters()}
        return parameters, self._statistics()

    @contextmanager
    def _functions(
        self,
        changes: Mapping[int, Change] | None = None,
        *,
        note: Callable[[Call], None] | None = None,
        inside: Sequence[str] = (),
        without_dropout: bool = False,
        perturbation: Perturbation | None = None,
    ) -> Iterator[Functions]:
        """Record and change calls of functions; in float64 PyTorch's default dtype is float64 meanwhile.

        The default dtype is that of the constants that a forward pass makes. It belongs to the whole process.
        """
        double, usual = self.dtype == torch.float64, torch.get_default_dtype()
        off = without_dropout or self.settings.without_dropout
        try:
            if double:
                torch.set_default_dtype(torch.float64)
            with Functions(changes or {}, note, inside, off, double, perturbation) as functions:
                yield functions
        finally:
            torch.set_default_dtype(usual)


@dataclass
class _ScaledEdge:
    """Which call's first tensor gets a scaled cotangent; None: no call's."""

    factor: float
    index: int | None = None


@dataclass(frozen=True)
class _Watched:
    """The change that scales the cotangent of a call's first tensor while the call is the scaled one."""

    edge: _ScaledEdge
    index: int

    def __call__(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Call the function with a view of its first tensor."""
        first = next((i for i, arg in enumerate(args) if isinstance(arg, Tensor) and arg.requires_grad), None)
        if first is None:
            return function(*args, **kwargs)
        view = args[first].view_as(args[first])
        view.register_hook(self._scaled)
        return function(*args[:first], view, *args[first + 1 :], **kwargs)

    def _scaled(self, cotangent: Tensor) -> Tensor:
        return cotangent * self.edge.factor if self.edge.index == self.index else cotangent


def _mover(perturbation: Perturbation) -> Callable[[object], object]:
    def move(value: object) -> object:
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return value
        return torch.from_numpy(moved(value.detach().cpu().numpy(), perturbation.numpy)).to(value.device)

    return move


def _copied(inputs: Sequence[Any]) -> Any:
    """Copy the inputs, which a model may change in place, by calls that do not count as the model's."""
    with torch._C.DisableTorchFunction():
        return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, tuple(inputs))


def _differentiated(value: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not value.requires_grad or not parameters:
        return [None] * len(parameters)
    with torch._C.DisableTorchFunction():
        return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
