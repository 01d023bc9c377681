"""The PyTorch half of a comparison: run a model, record it, and run it again with one function changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils._pytree import tree_map

from grl.diagnosis.torch_gradients import undone
from grl.port.runs.recording import LOSS, OUTPUT, Array, Dropout, Key, Recording
from grl.port.runs.torch_functions import Call, Change, Functions
from grl.port.runs.torch_layers import ReachedError, count_reversals, entered, floats, recording, to_numpy

__all__ = ["TorchModel", "to_tensors"]


class TorchModel:
    """A copy of a model in one precision, which runs as often as is asked for, each time from the same state.

    Args:
        model: the user's, which stays as it is.
        inputs: the arguments of the call: NumPy arrays, or whatever else the model takes.
        loss: dtype -> a function of the output to a scalar tensor.
        double: whether to compute in float64; the model's own precision otherwise.
        train: the mode; None: that of the model.
        watched: the names of the layers to record.
        optimizer: over the model's parameters: a `torch.optim.Optimizer`, a scheduler that holds one, a tuple of both,
            or a function of parameters that makes any of these.
        without_dropout: whether dropout is off in any case.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Any],
        loss: Callable[[torch.dtype], Callable[[Any], Tensor]],
        *,
        double: bool,
        train: bool | None,
        watched: Sequence[str],
        optimizer: Any = None,
        without_dropout: bool = False,
    ) -> None:
        is_made = optimizer is not None and (isinstance(optimizer, tuple) or hasattr(optimizer, "step"))
        # At once, so that the optimiser's copy is over the parameters of the model's copy.
        self.model, made = copy.deepcopy((model, optimizer if is_made else None))
        if train is not None:
            self.model.train(train)
        if optimizer is not None and not is_made:
            made = optimizer(self.model.parameters())
        self.optimizer, self.scheduler = _parts(made)
        if double:
            self.model.double()
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                if tensor.is_complex():  # which `double` leaves as they are
                    tensor.data = tensor.data.to(torch.complex128)
            for state in self.optimizer.state.values() if self.optimizer is not None else ():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.is_floating_point() and name != "step":
                        state[name] = value.double()
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        dtypes = [p.dtype for p in self.model.parameters() if p.is_floating_point()]
        self.dtype = torch.float64 if double else (dtypes or [torch.float32])[0]
        self.inputs = to_tensors(inputs, self.dtype, device)
        self.loss = loss(self.dtype)
        self.watched = watched
        self.without_dropout = without_dropout

    def run(self, changes: Mapping[int, Change] | None = None) -> Recording:
        """Run forward and backward, and the optimiser's step if there is one."""
        seen = Recording()
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with undone(self.model), self._functions(changes) as functions, torch.enable_grad():
            with recording(self.model, self.watched, seen):
                value = self._forward(seen)
            seen.dropouts = functions.dropouts
            found = _differentiated(value, list(parameters.values()))
            seen.parameters = list(parameters)
            seen.reversals = count_reversals(value.grad_fn)
            seen.gradients = {
                name: to_numpy(g) for (name, p), g in zip(parameters.items(), found, strict=True) if g is not None
            }
            seen.statistics = {
                name: to_numpy(b, copied=True) for name, b in self.model.named_buffers() if b.is_floating_point()
            }
            if self.optimizer is not None:
                seen.updates = self._step(parameters, found)
        return seen

    def dropouts(self) -> list[Dropout]:
        """Return the dropouts that are active, in the order of their calls."""
        with undone(self.model), self._functions(None) as functions, torch.no_grad():
            self.model(*_copied(self.inputs))
        return functions.dropouts

    def activation(self, key: Key, changes: Mapping[int, Change] | None = None) -> list[Array]:
        """Return what one call of a layer gives, or the output, or the loss, when functions before it are changed."""
        seen = Recording()
        with (
            undone(self.model),
            self._functions(changes),
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
            return {name: to_numpy(b, copied=True) for name, b in self.model.named_buffers() if b.is_floating_point()}

    def calls(self, until: Key | None = None) -> list[tuple[Call, int]]:
        """Return all calls of functions up to a call of a layer, with how many watched layers had ended before each."""
        seen, calls = Recording(), list[tuple[Call, int]]()
        inside: list[str] = []

        def note(call: Call) -> None:
            calls.append((call, len(seen.activations)))

        names = self.watched if until is None else [*self.watched, until[0]]
        with (
            undone(self.model),
            self._functions(None, note, inside),
            torch.no_grad(),
            entered(self.model, inside),
            recording(self.model, names, seen, until),
            suppress(ReachedError),
        ):
            self._forward(seen)
        return calls

    def gradients_by_edge(
        self, factor: float, indices: Sequence[int], wanted: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield, for each call of a function, the gradients when what flows back into its first tensor is scaled.

        Args:
            factor: what the gradient is multiplied by.
            indices: the calls' numbers.
            wanted: the names of the parameters.
        """
        scaled: list[int] = []

        def watch(index: int) -> Change:
            def change(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                def scale(tensor: Tensor) -> Tensor:
                    view = tensor.view_as(tensor)
                    view.register_hook(lambda g: g * factor if index in scaled else g)
                    return view

                first = next((i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad), None)
                if first is None:
                    return function(*args, **kwargs)
                return function(*args[:first], scale(args[first]), *args[first + 1 :], **kwargs)

            return change

        parameters = [dict(self.model.named_parameters())[name] for name in wanted]
        with undone(self.model), self._functions({i: watch(i) for i in indices}), torch.enable_grad():
            value = self.loss(self.model(*_copied(self.inputs)))
            for index in indices:
                scaled[:] = [index]
                found = _differentiated(value, parameters)
                yield index, {n: to_numpy(g) for n, g in zip(wanted, found, strict=True) if g is not None}

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

    def _step(self, parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None]) -> dict[str, Array]:
        assert self.optimizer is not None
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        updates = {name: to_numpy(p.detach() - before[name]) for name, p in parameters.items()}
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
                parameter.grad = None
        self.optimizer.load_state_dict(optimizer)
        return updates

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
        with torch.random.fork_rng(devices=sorted(devices)), self._functions(None), torch.enable_grad():
            torch.manual_seed(seed)
            value = loss(self.model(*_copied(inputs)))
        value.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            watched = (value.detach(),) if isinstance(self.scheduler, ReduceLROnPlateau) else ()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it takes the copy of its optimiser for another one
                self.scheduler.step(*watched)
        return float(value.detach())

    def state(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return parameters, frozen ones too, and running statistics as they are now."""
        parameters = {name: to_numpy(p, copied=True) for name, p in self.model.named_parameters()}
        statistics = {name: to_numpy(b, copied=True) for name, b in self.model.named_buffers() if b.is_floating_point()}
        return parameters, statistics

    @contextmanager
    def _functions(
        self,
        changes: Mapping[int, Change] | None,
        note: Callable[[Call], None] | None = None,
        inside: list[str] | None = None,
    ) -> Iterator[Functions]:
        double, usual = self.dtype == torch.float64, torch.get_default_dtype()
        try:
            if double:
                torch.set_default_dtype(torch.float64)  # of the constants that a forward pass makes
            with Functions(changes or {}, note, inside, self.without_dropout, double) as functions:
                yield functions
        finally:
            torch.set_default_dtype(usual)


def to_tensors(values: Any, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """Return a pytree with tensors for its NumPy arrays, without a copy where dtype and device allow.

    Args:
        values: the pytree.
        dtype: of what is floating-point in it.
        device: of the tensors.
    """

    def convert(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        shares = value.flags.writeable and min(value.strides, default=0) >= 0
        tensor = torch.from_numpy(value if shares else value.copy())
        if tensor.dtype == torch.int32:
            tensor = tensor.long()  # what PyTorch takes for an index
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return tree_map(convert, values)


def _copied(inputs: Sequence[Any]) -> Any:
    """A run's own tensors, which a model may change in place, by calls that are not to be counted as the model's."""
    with torch._C.DisableTorchFunction():
        return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, tuple(inputs))


def _parts(made: Any) -> tuple[Any, Any]:
    """An optimiser and its scheduler, from either of them or both."""
    if isinstance(made, tuple):
        return made
    return (made.optimizer, made) if hasattr(made, "optimizer") else (made, None)


def _differentiated(value: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not value.requires_grad or not parameters:
        return [None] * len(parameters)
    with torch._C.DisableTorchFunction():
        return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
