"""Two models that correspond, and the runs of each: what `compare` and `compare_training` set out from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from grl.port.runs.inputs import Feed, losses
from grl.port.runs.nnx_model import JaxModel
from grl.port.runs.recording import LOSS, OUTPUT, Array, Key, Recording
from grl.port.runs.torch_model import TorchModel
from grl.weights.differences import differing_weights
from grl.weights.flattened import find_flattened
from grl.weights.halves import half_of
from grl.weights.pairing import pair
from grl.weights.slot import PortError

__all__ = ["Twins"]


class Twins:
    """A PyTorch model and its port to nnx with all that a run needs; the arguments are those of `compare`.

    Raises:
        TypeError: a model is of neither framework.
        ValueError: an argument cannot be taken.
    """

    def __init__(
        self,
        torch_model: Any,
        nnx_model: Any,
        inputs: Any,
        loss: Any,
        targets: Any,
        layout: str | None,
        optimizers: tuple[Any, Any] | None,
        train: bool | None,
        names: Mapping[str, str] | None,
    ) -> None:
        self.pairing = pair(torch_model, nnx_model, names)
        self.weights = differing_weights(torch_model, nnx_model, self.pairing)
        self.their_names = {one.torch_name: one.nnx_name for one in self.pairing.pairs}
        self._learn_orders(torch_model, nnx_model)
        self._first_names = _first_names(torch_model)
        self.layers = {one.torch_name: one.nnx_module for one in self.pairing.pairs}
        self.channels = frozenset((*self.weights.flattened.values(), *self._channels_of_others(nnx_model)))
        self.feed = Feed.of(inputs, torch_model, layout)
        self.notes = [self.feed.note] if self.feed.note else []
        self._models = torch_model, nnx_model
        self._losses = losses(loss, targets)
        self._optimizers = optimizers or (None, None)
        self._train = train
        self.alike = self._takes_channels_first()
        self.silent = self._both_drop()

    def torch(self, double: bool) -> TorchModel:
        """A copy of PyTorch's model; in float64 with the numbers that the nnx model has."""
        model = TorchModel(
            self._models[0],
            self.feed.torch,
            self._losses[0],
            double=double,
            train=self._train,
            watched=list(self.their_names),
            optimizer=self._optimizers[0],
            without_dropout=self.silent,
        )
        if double:
            model.put(self.weights.rounded)
        return model

    def nnx(self, double: bool) -> JaxModel:
        """A copy of the nnx model."""
        return JaxModel(
            self._models[1],
            self.feed.nnx_alike if self.alike else self.feed.nnx,
            self._losses[1],
            double=double,
            train=self._train,
            watched=list(self.their_names.values()),
            optimizer=self._optimizers[1],
            without_dropout=self.silent,
        )

    @cached_property
    def is_double(self) -> bool:
        """Whether both models are in float64 as they are."""
        slots = half_of("torch").slots(self._models[0]), half_of("nnx").slots(self._models[1])
        arrays = [slot.read() for side in slots for slot in side.values()]
        return {array.dtype for array in arrays if array.dtype.kind == "f" and array.ndim} == {np.dtype(np.float64)}

    def their_key(self, key: Key) -> Key:
        """The nnx model's name of a layer, with the same number of the call."""
        return key if key in (OUTPUT, LOSS) else (self.their_names[key[0]], key[1])

    def in_torch(self, arrays: Mapping[str, Array], gradients: bool = False) -> dict[str, Array]:
        """Return the nnx model's arrays by PyTorch's names and in its layouts."""
        found = self.pairing.to_torch(dict(arrays), self.weights.flattened, gradients=gradients)
        for name, first in self._first_names.items():
            if name in found:  # the frameworks may keep different names for a module that is used twice
                found.setdefault(first, found[name])
        return found

    def frozen(self, ours: Recording, theirs: Mapping[str, Array]) -> tuple[str, ...]:
        """Return the names of PyTorch's parameters, of those with a counterpart, that one side alone trains.

        Args:
            ours: a run of PyTorch's model.
            theirs: the nnx model's gradients, by PyTorch's names.
        """
        names = [name for name, _ in self._models[0].named_parameters() if name not in self.pairing.unmatched_torch]
        unlike = [n for n in names if "bias_hh" not in n and (n in ours.parameters) != (n in theirs)]
        return tuple(unlike)

    def _learn_orders(self, torch_model: Any, nnx_model: Any) -> None:
        """Find out by experiment what constant weights do not tell: whether their inputs are a flattened map's."""
        maps = {one.nnx_module.out_features for one in self.pairing.pairs if hasattr(one.nnx_module, "kernel_size")}
        flattened = self.weights.flattened
        constant = {name: size for name, size in self.weights.constant.items() if size not in maps}  # not a map's norm
        if not maps or not constant:
            return
        try:
            found = find_flattened(nnx_model, None, self.their_names, torch_model)
        except PortError:  # then as the other layers of as many inputs
            like = {self.weights.sizes[name]: channels for name, channels in flattened.items()}
            found = {name: like[size] for name, size in constant.items() if size in like}
        flattened.update({name: channels for name, channels in found.items() if name in constant})

    def _channels_of_others(self, nnx_model: Any) -> Iterable[int]:
        """Those of maps that the nnx model flattens before weights that are not PyTorch's, and so tell of no order."""
        if not any(array.ndim == 2 for array in self.weights.differing.values()):
            return ()
        try:
            return find_flattened(nnx_model).values()
        except PortError:
            return ()

    def _takes_channels_first(self) -> bool:
        self.alike, self.silent = False, False
        if not self.feed.note or self.nnx(False).accepts():
            return False
        self.alike = True
        if not self.nnx(False).accepts():
            return False  # it takes neither; what it raises is for the user to see
        self.notes.append("the nnx model takes them as PyTorch's does, channels first")
        return True

    def _both_drop(self) -> bool:
        self.silent = False
        ours, theirs = self.torch(False).dropouts(), self.nnx(False).dropouts()
        rates = [dropout.rate for dropout in ours]
        if not rates or rates != [dropout.rate for dropout in theirs]:
            return False
        self.notes.append(f"dropout (rates {', '.join(f'{rate:g}' for rate in rates)}) is off on both sides")
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
            if a.shape and b.shape and sorted(a.shape) != sorted(b.shape):
                self.notes.append(f"dropout {number} is of an array {a.shape} in PyTorch and {b.shape} in nnx")
            if a.whole != b.whole:
                kinds = {True: "whole channels", False: "single numbers"}
                self.notes.append(f"dropout {number} drops {kinds[a.whole]} in PyTorch and {kinds[b.whole]} in nnx")
        return True


def _first_names(model: Any) -> dict[str, str]:
    """Other names of a parameter that is there twice → the one that PyTorch keeps."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: kept for name, p in named if (kept := first.setdefault(id(p), name)) != name}
