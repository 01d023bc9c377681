"""Two models that correspond, ready to run: in float64 or in their own precision, on the same arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from grl.port.correspondence import Correspondence, correspond
from grl.port.runs.inputs import Feed, losses
from grl.port.runs.nnx_model import JaxModel
from grl.port.runs.recording import Dropout, RunSettings
from grl.port.runs.torch_model import TorchModel
from grl.port.setup import Setup
from grl.weights.halves import half_of

__all__ = ["Twins", "twins_of"]


def twins_of(setup: Setup) -> Twins:
    """Pair two models, lay out their inputs, and switch off dropouts that are active on both sides.

    Raises:
        TypeError: a model belongs to neither framework.
        ValueError: an argument is not accepted.
    """
    correspondence = correspond(setup)  # first: it raises if a model belongs to neither framework
    feed = Feed.of(setup.inputs, setup.torch_model, setup.layout)
    notes = (feed.note,) if feed.note else ()
    return _without_common_dropout(_with_accepted_layout(Twins(setup, correspondence, feed, notes)))


@dataclass(frozen=True)
class Twins:
    """A PyTorch model and its port to nnx with everything that a run needs.

    Args:
        setup: what the user asked for.
        correspondence: the names and layouts of both models.
        feed: the inputs of both.
        notes: what was assumed.
        channels_first: whether the nnx model takes images as PyTorch's does.
        without_dropout: whether dropout is switched off on both sides.
    """

    setup: Setup
    correspondence: Correspondence
    feed: Feed
    notes: tuple[str, ...]
    channels_first: bool = False
    without_dropout: bool = False

    def torch(self, double: bool) -> TorchModel:
        """Return a copy of PyTorch's model; in float64 its numbers are those of the nnx model."""
        settings = RunSettings(
            double, self.setup.train, tuple(self.correspondence.nnx_names), without_dropout=self.without_dropout
        )
        loss = losses(self.setup.loss, self.setup.targets)[0]
        model = TorchModel(self.setup.torch_model, self.feed.torch, loss, settings, self.setup.optimizers[0])
        if double:
            model.put(self.correspondence.weights.rounded)
        return model

    def nnx(self, double: bool) -> JaxModel:
        """Return a copy of the nnx model."""
        settings = RunSettings(
            double, self.setup.train, tuple(self.correspondence.nnx_names.values()), self.without_dropout
        )
        loss = losses(self.setup.loss, self.setup.targets)[1]
        inputs = self.nnx_inputs(self.feed)
        return JaxModel(self.setup.nnx_model, inputs, loss, settings, self.setup.optimizers[1])

    def nnx_inputs(self, feed: Feed) -> tuple[object, ...]:
        """Return the arguments of the nnx model, in the layout that it takes."""
        return feed.torch if self.channels_first else feed.nnx

    @property
    def is_double(self) -> bool:
        """Whether both models are in float64 as the user made them."""
        torch_slots = half_of("torch").slots(self.setup.torch_model)
        nnx_slots = half_of("nnx").slots(self.setup.nnx_model)
        arrays = [slot.read() for slot in (*torch_slots.values(), *nnx_slots.values())]
        return {array.dtype for array in arrays if array.dtype.kind == "f" and array.ndim} == {np.dtype(np.float64)}


def _with_accepted_layout(twins: Twins) -> Twins:
    """Return the twins with the layout of images that the nnx model takes: channels last, or else channels first."""
    if not twins.feed.note or twins.nnx(False).accepts():
        return twins
    note = "the nnx model takes them as PyTorch's does, channels first"
    channels_first = replace(twins, channels_first=True, notes=(*twins.notes, note))
    # A model that takes neither raises its own error in the run, for the user to see.
    return channels_first if channels_first.nnx(False).accepts() else twins


def _without_common_dropout(twins: Twins) -> Twins:
    """Return the twins without dropout if it is active on both sides at the same rates: the masks would differ."""
    torch_dropouts, nnx_dropouts = twins.torch(False).dropouts(), twins.nnx(False).dropouts()
    rates = [dropout.rate for dropout in torch_dropouts]
    if not rates or rates != [dropout.rate for dropout in nnx_dropouts]:
        return twins
    notes = [f"dropout (rates {', '.join(f'{rate:g}' for rate in rates)}) is off on both sides"]
    for number, (torch_dropout, nnx_dropout) in enumerate(zip(torch_dropouts, nnx_dropouts, strict=True), 1):
        notes += _differences(number, torch_dropout, nnx_dropout)
    return replace(twins, without_dropout=True, notes=(*twins.notes, *notes))


def _differences(number: int, torch_dropout: Dropout, nnx_dropout: Dropout) -> list[str]:
    shapes = torch_dropout.shape, nnx_dropout.shape
    kinds = {True: "whole channels", False: "single numbers"}
    notes = []
    if all(shapes) and sorted(shapes[0]) != sorted(shapes[1]):
        notes.append(f"dropout {number} is of an array {shapes[0]} in PyTorch and {shapes[1]} in nnx")
    if torch_dropout.whole != nnx_dropout.whole:
        notes.append(
            f"dropout {number} drops {kinds[torch_dropout.whole]} in PyTorch and {kinds[nnx_dropout.whole]} in nnx"
        )
    return notes
