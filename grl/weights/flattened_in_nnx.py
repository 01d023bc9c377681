"""Which inputs of a layer change with a channel of the feature map before it: the part of `flatten` that needs JAX."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array as JaxArray

from grl.arrays import Array
from grl.substitution import replaced
from grl.weights.feature_order import BY_FEATURE, input_weight
from grl.weights.tree import Node, grown

__all__ = ["Changed", "changed_inputs"]


_CHANNELS_LAST = ("Conv", "ConvTranspose", "BatchNorm", "GroupNorm", "InstanceNorm")  # and first in PyTorch
_KEEP_ORDER = ("LayerNorm", "RMSNorm", "Dropout")
_SAMPLES = 5  # as it is; more and less of one channel; more and less of the next
_CHANGE = 1e3  # within the range of float16, and beyond what an activation can hide in both directions
_LARGEST = 1024  # pixels on a side
_TRIES = 8


@dataclass(frozen=True)
class Changed:
    """Which inputs of a layer change.

    Args:
        first: with one channel of a feature map before it, (inputs,) of bool.
        second: with the next channel.
        direct: whether there is no layer between that mixes features.
        side: of the image, in pixels.
    """

    first: Array
    second: Array
    direct: bool
    side: int


def changed_inputs(model: Any, tree: Node) -> dict[str, Changed] | None:
    """Return which inputs of each layer that takes vectors change with one channel and with the next.

    Args:
        model: an `nnx.Module`; it stays as it is.
        tree: of the model.

    Returns:
        nnx's name → what changes, for layers that a change reaches; None if the model does not run on one square image,
        (N, H, W, C).
    """
    convolutions = [leaf.value for leaf in tree.leaves() if leaf.kind in ("Conv", "ConvTranspose")]
    model = nnx.clone(model)
    model.eval()
    graph, state = nnx.split(model)
    # Ones: whatever the weights are, no scale of 0 is to block the way, and no layer to be cut off.
    state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    run = partial(_run, graph)

    def image(axes: int, features: int, dtype: Any, side: int) -> Any:
        return jax.ShapeDtypeStruct((_SAMPLES, *[side] * axes, features), dtype)

    with jax.numpy_dtype_promotion("standard"):  # batch norm's statistics are float32, whatever its parameters are
        for kind in dict.fromkeys((len(one.kernel_size), one.in_features, one.param_dtype) for one in convolutions):
            found = _changed_inputs(run, state, partial(image, *kind))  # whichever of them comes first as it runs
            if found is not None:
                return found
    return None


def _changed_inputs(run: Any, state: Any, image: Callable[[int], Any]) -> dict[str, Changed] | None:
    side = _smallest_side(lambda side: jax.eval_shape(run, state, image(side)))
    if side is None:
        return None
    while True:
        found, is_empty = _changed_at(side, run, state, image)
        if not is_empty or side > _LARGEST // 4:
            return found
        side *= 2  # the mean over a map without a pixel is NaN, and shows no change


def _changed_at(side: int, run: Any, state: Any, image: Callable[[int], Any]) -> tuple[dict[str, Changed], bool]:
    """What changes with a map, and whether an image of this side leaves one without a pixel."""
    watches: list[_Watch] = []
    jax.eval_shape(partial(run, watches=watches), state, image(side))
    found: dict[str, Changed] = {}
    is_empty = False
    x = np.zeros(image(side).shape, image(side).dtype)
    for replace_at in range(watches[0].maps)[: -_TRIES - 1 : -1]:
        inputs = jax.jit(partial(run, watches=watches, replace_at=replace_at))(state, x)
        for path, array in inputs.items():
            rows = np.asarray(array, np.float32)
            is_empty |= bool(np.isnan(rows).any())
            changed = np.abs(rows[1:] - rows[0]) > 1e-3 * np.abs(rows[1:] - rows[0]).max()
            if changed.any() and path not in found:
                pairs = changed.reshape(2, -1, changed.shape[-1]).any(1)
                found[path] = Changed(pairs[0], pairs[1], path in watches[-1].direct, side)
    return found, is_empty


class _MisfitError(Exception):
    """The image is too small or too large for a layer."""


def _smallest_side(trace: Callable[[int], Any]) -> int | None:
    """The smallest image that the model takes; what the layers take grows with it."""
    low, high, found = 1, _LARGEST, None
    while low <= high:
        side = (low + high) // 2
        try:
            trace(side)
            found, high = side, side - 1
        except _MisfitError as misfit:
            low, high = (low, side - 1) if misfit.args[0] > 0 else (side + 1, high)
        except Exception:  # whatever a model says to an image without a pixel
            low = side + 1
    return found


def _run(graph: Any, state: Any, x: JaxArray, watches: list[_Watch] | None = None, replace_at: int = -1) -> Any:
    """Return what goes into the layers that take vectors, with one feature map replaced."""
    model = nnx.merge(graph, state)
    watch = _Watch({id(leaf.value): leaf for leaf in grown(model).leaves()}, replace_at)
    with ExitStack() as stack:
        for cls in {type(leaf.value) for leaf in watch.leaves.values() if leaf.rule is not None}:
            stack.enter_context(replaced(cls, "__call__", watch.around(cls.__call__)))
        model(x)
    if watches is not None:
        watches.append(watch)
    return watch.inputs


@dataclass
class _Watch:
    leaves: dict[int, Node]
    replace_at: int
    maps: int = 0
    inputs: dict[str, JaxArray] = field(default_factory=dict)
    direct: set[str] = field(default_factory=set)
    mixed: bool = False

    def around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The `__call__` of a class, watched."""

        def called(module: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            leaf = self.leaves.get(id(module))
            if leaf is None:  # a part of a layer
                return original(module, x, *args, **kwargs)
            self._look(leaf, x)
            if leaf.kind in _KEEP_ORDER or (leaf.kind == "BatchNorm" and x.ndim == 2):
                return x  # else one changed channel would change all the others too
            y = original(module, x, *args, **kwargs)
            if leaf.kind in _CHANNELS_LAST and y.ndim > 2:
                y = _changed(y) if self.maps == self.replace_at else y
                self.mixed = self.maps != self.replace_at
                self.maps += 1
            else:
                self.mixed |= bool(leaf.slots) and leaf.kind != "GRL"
            return y

        return called

    def _look(self, leaf: Node, x: Any) -> None:
        if leaf.kind not in BY_FEATURE:
            return
        wanted = (leaf.shapes.get(input_weight(leaf.kind)) or (0,))[-1]
        if "Norm" not in leaf.kind and x.shape[-1] != wanted:
            raise _MisfitError(x.shape[-1] - wanted)
        if self.maps > self.replace_at >= 0 and x.ndim >= 2 and leaf.path not in self.inputs:
            self.inputs[leaf.path] = x
            self.direct |= set() if self.mixed else {leaf.path}


def _changed(y: JaxArray) -> JaxArray:
    """A feature map of zeros, (5, …, C), with two neighbouring channels changed."""
    if len(y) != _SAMPLES or y.shape[-1] < 2:
        return y
    change = np.zeros((_SAMPLES, *[1] * (y.ndim - 2), y.shape[-1]))
    change[1:, ..., :2] = np.reshape([[1, 0], [-1, 0], [0, 1], [0, -1]], (4, *[1] * (y.ndim - 2), 2)) * _CHANGE
    return jnp.broadcast_to(jnp.asarray(change, y.dtype), y.shape)
