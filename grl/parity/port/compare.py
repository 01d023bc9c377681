"""Run a PyTorch model and its port to nnx on the same arrays, and name the first place where they part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from grl.parity.bits import ulp_distance
from grl.parity.port.causes import Cause, Evidence, explain_activation
from grl.parity.port.causes.reversal import GradientEvidence, explain_gradients
from grl.parity.port.causes.statistics import explain_statistics
from grl.parity.port.causes.updates import explain_updates
from grl.parity.port.feeding import Feed, losses
from grl.parity.port.judgement import TOLERANCE, WIDENING, alignment, distance, size
from grl.parity.port.pairing import Pairing, pair
from grl.parity.port.recording import LOSS, OUTPUT, Array, Key, Recording
from grl.parity.port.recording_jax import JaxModel
from grl.parity.port.recording_torch import TorchModel
from grl.parity.port.report import Divergence, ParityReport, Row
from grl.parity.port.same_weights import differing_weights
from grl.parity.port.tree import half_of

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

    Returns:
        The report; `agrees`, `first_divergence`, `show()`, `to_json(path)`, `plot(path)`.

    Raises:
        TypeError: a model is of neither framework.
        ValueError: an argument cannot be taken, or nothing in the models corresponds.

    Example:
        `compare(torch_model, nnx_model, images, loss=(F.cross_entropy, jax_loss), targets=labels).show()`
    """
    return _Comparison(torch_model, nnx_model, inputs, loss, targets, layout, optimizers, train, names).report()


def assert_parity(torch_model: Any, nnx_model: Any, inputs: Any, **options: Any) -> None:
    """Raise unless a PyTorch model and its port agree: a line for your own tests.

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


class _Comparison:
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
        if not self.pairing.pairs and not self.pairing.parameters:
            raise ValueError("nnx_model: got a model in which nothing corresponds to torch_model; give names=….")
        self.is_double = _is_double(torch_model, nnx_model)
        self.weights = differing_weights(torch_model, nnx_model, self.pairing)
        feed = Feed.of(inputs, torch_model, self.pairing, layout)
        torch_loss, jax_loss = losses(loss, targets)
        self.notes = [feed.note] if feed.note else []
        ours, theirs = optimizers or (None, None)
        self.their_names = {pair.torch_name: pair.nnx_name for pair in self.pairing.pairs}
        make_torch = partial(TorchModel, torch_model, feed.torch, train=train, watched=list(self.their_names))
        self.make_torch = lambda double: make_torch(torch_loss, double=double, optimizer=ours)

        def make_jax(double: bool, inputs: tuple[Any, ...]) -> JaxModel:
            watched = list(self.their_names.values())
            return JaxModel(
                nnx_model, inputs, jax_loss, double=double, train=train, watched=watched, optimizer=theirs
            )

        self.double = self.make_torch(True), make_jax(True, feed.nnx)
        self.double[0].put(self.weights.rounded)
        chosen = feed.nnx
        if feed.note and not self.double[1].accepts():
            self.double = self.double[0], make_jax(True, feed.nnx_alike)
            if self.double[1].accepts():
                self.notes.append("the nnx model takes them as PyTorch's does, channels first")
                chosen = feed.nnx_alike
        self.make_jax = lambda double: make_jax(double, chosen)
        if chosen is feed.nnx:
            self.double = self.double[0], self.make_jax(True)
        self._silence_dropouts()

    def _silence_dropouts(self) -> None:
        rates = [model.dropouts() for model in self.double]
        self.silent = bool(rates[0]) and rates[0] == rates[1]
        if self.silent:
            self.notes.append(f"dropout (rates {', '.join(f'{r:g}' for r in rates[0])}) is off on both sides")
            for model in self.double:
                model.without_dropout = True

    def report(self) -> ParityReport:
        """Run everything, judge it, and look for causes."""
        double = self.double[0].run(), self.double[1].run()
        if double[1].narrow:
            self.notes.append("the nnx model rounds to float32 in float64 too, so that only more than that shows")
        single = []
        for make, already in zip((self.make_torch, self.make_jax), double, strict=True):
            if self.is_double:
                single.append(already)
                continue
            model = make(False)
            model.without_dropout = self.silent
            single.append(model.run())
        rows = [
            *self._activations(double, (single[0], single[1])),
            *self._arrays("gradient", double, (single[0], single[1])),
            *self._arrays("update", double, (single[0], single[1])),
            *self._arrays("statistic", double, (single[0], single[1])),
        ]
        first = next((row for row in rows if not row.agrees), None)
        divergence = None if first is None else self._divergence(first, rows, double)
        return ParityReport(
            tuple(rows), divergence, tuple(self.notes), self.pairing.unmatched_torch, self.pairing.unmatched_nnx
        )

    def _their_key(self, key: Key) -> Key:
        return key if key in (OUTPUT, LOSS) else (self.their_names[key[0]], key[1])

    def _activations(self, double: tuple[Recording, Recording], single: tuple[Recording, Recording]) -> Iterator[Row]:
        channels = set(self.weights.flattened.values())
        for key in double[0].activations:
            found = [
                [(run[0].activations[key], run[1].activations[self._their_key(key)]) for run in (double, single)]
                if self._their_key(key) in double[1].activations
                else []
            ][0]
            if not found:
                continue
            (ours, theirs), (ours32, theirs32) = found
            if not ours or not theirs:
                continue
            judged = [
                _row("activation", key, self._their_key(key)[0], a, b, a32, b32, 0.0, double[1].narrow, channels)
                for a, b, a32, b32 in zip(ours, theirs, ours32, theirs32, strict=False)
            ]
            yield max(judged, key=lambda row: (not row.agrees, row.absolute))

    def _arrays(
        self, kind: str, double: tuple[Recording, Recording], single: tuple[Recording, Recording]
    ) -> Iterator[Row]:
        ours, theirs = ([_of_kind(run[side], kind) for run in (double, single)] for side in (0, 1))
        converted = [self._in_torch(arrays, kind) for arrays in theirs]
        names = [name for name in self._order(double[0], kind) if name in converted[0]]
        for run in ours:  # what the loss does not depend on has no gradient in PyTorch, and the gradient 0 in JAX
            run |= {name: np.zeros_like(converted[0][name]) for name in names if name not in run}
        largest = max((size(ours[0][name]) for name in names), default=0.0)
        floor = 0.0 if kind == "statistic" else 1e-13 * largest
        for name in names:
            arrays = ours[0][name], converted[0][name], ours[1][name], converted[1][name]
            yield _row(kind, (name, 0), self._their_place(name), *arrays, floor, double[1].narrow)

    def _in_torch(self, arrays: Mapping[str, Array], kind: str) -> dict[str, Array]:
        gradients = kind in ("gradient", "update")
        return self.pairing.to_torch(dict(arrays), self.weights.flattened, gradients=gradients)

    def _order(self, ours: Recording, kind: str) -> list[str]:
        """Statistics in the order of execution, gradients as the backward pass reaches them."""
        last = {name: i for i, (name, _) in enumerate(ours.activations)}
        model = self.double[0].model
        every = [n for n, p in model.named_parameters() if p.requires_grad]
        if kind == "statistic":
            return list(ours.statistics)
        return sorted(every, key=lambda name: -last.get(name.rpartition(".")[0], -1))

    def _their_place(self, name: str) -> str:
        module, _, own = name.rpartition(".")
        return f"{self.their_names[module]}.{own}" if module in self.their_names else name

    def _divergence(self, first: Row, rows: list[Row], double: tuple[Recording, Recording]) -> Divergence:
        if first.kind == "activation":
            where, causes = self._explain_activation(first, rows, double)
        else:
            where, causes = first.where, self._explain_array(first, rows, double)
        kind = "gradient" if first.kind == "update" else first.kind
        return Divergence(where, kind, first.real, tuple(causes), first.kind == "update")

    def _explain_activation(
        self, first: Row, rows: list[Row], double: tuple[Recording, Recording]
    ) -> tuple[str, list[Cause]]:
        key = first.key
        keys = list(double[0].activations)
        before = keys[: keys.index(key)]
        layer = next((p.nnx_module for p in self.pairing.pairs if p.torch_name == key[0]), None)
        evidence = Evidence(
            *self.double,
            key=key,
            their_key=self._their_key(key),
            theirs=double[1].activations[self._their_key(key)],
            ended=len(before),
            layer=layer,
            replacements=self.weights.of(key[0]),
            slack=(4.0 if double[1].narrow else WIDENING) * first.rounding,
            channels=tuple(set(self.weights.flattened.values())),
        )
        causes = explain_activation(evidence)
        inside = evidence.proven.module if evidence.proven is not None else None
        return _place(first.where, key, inside, before), causes

    def _explain_array(self, first: Row, rows: list[Row], double: tuple[Recording, Recording]) -> list[Cause]:
        ours, theirs = double
        torch_model = self.double[0]
        if first.kind == "gradient":
            gradients = self._in_torch(theirs.gradients, "gradient")
            differing = [row.key[0] for row in rows if row.kind == "gradient" and not row.agrees]
            theirs.reversals = self.double[1].reversals()
            return explain_gradients(GradientEvidence(torch_model, ours, theirs, gradients, differing))
        if first.kind == "update":
            updates = self._in_torch(theirs.updates, "update")
            weights = {name: torch_model.parameter(name) for name in updates if name in ours.updates}
            return explain_updates(torch_model.optimizer, weights, ours.gradients, updates)
        name = first.key[0]
        layer = next((p.nnx_module for p in self.pairing.pairs if p.torch_name == name.rpartition(".")[0]), None)
        return explain_statistics(torch_model, name, self._in_torch(theirs.statistics, "statistic"), layer)


def _is_double(torch_model: Any, nnx_model: Any) -> bool:
    """Whether both models are in float64 as they are."""
    slots = [slot for side, model in (("torch", torch_model), ("nnx", nnx_model)) for slot in half_of(side).slots(model).values()]
    return {array.dtype for array in (slot.read() for slot in slots) if array.dtype.kind == "f" and array.ndim} == {np.dtype(np.float64)}


def _of_kind(run: Recording, kind: str) -> dict[str, Array]:
    return {"gradient": run.gradients, "update": run.updates, "statistic": run.statistics}[kind]


def _place(where: str, key: Key, inside: str | None, before: list[Key]) -> str:
    """The layer itself, a layer without a counterpart that was proven to be it, or what lies between two layers."""
    if inside is None or inside == key[0]:
        return where
    if inside and key not in (OUTPUT, LOSS) and not key[0].startswith(f"{inside}."):
        return inside
    if key in (OUTPUT, LOSS):
        return inside or where
    return f"{before[-1][0]} → {where}" if before else where


def _row(kind: str, key: Key, their_name: str, a: Array, b: Array, a32: Array, b32: Array, floor: float, narrow: bool, channels: Iterable[int] = ()) -> Row:
    """Judge one array.

    Args:
        kind: what it is.
        key: its name in PyTorch, and which call.
        their_name: its name in nnx.
        a, b: PyTorch's and the nnx model's in float64.
        a32, b32: the same in the models' own precision.
        floor: a difference that is granted in any case.
        channels: as for `alignment`.
        narrow: whether the nnx model rounds to float32 in float64 too, so that all rounding is granted.
    """
    align = alignment(b, a, channels)
    b, b32 = align(b), align(b32)
    scale = max(size(a), size(b))
    rounding = max(distance(a32.astype(np.float64), a), distance(b32.astype(np.float64), b))
    real, seen = distance(a, b), distance(a32, b32)
    granted = (4.0 if narrow else WIDENING) * (rounding if np.isfinite(rounding) else 0.0)
    bound = TOLERANCE * scale + granted + floor
    whole = max(scale, size(a32), size(b32))
    same_kind = a32.shape == b32.shape and a32.dtype == b32.dtype
    return Row(
        kind=kind,
        key=key,
        where=key[0] if key[0] == their_name else f"{key[0]} (nnx: {their_name})",
        absolute=seen,
        relative=seen / whole if whole else seen,
        ulp=float(ulp_distance(a32, b32).max()) if same_kind and a32.size else float("nan"),
        rounding=rounding,
        scale=whole,
        real=real,
        agrees=real <= bound,
    )


