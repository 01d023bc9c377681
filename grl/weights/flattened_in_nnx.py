"""An experiment in nnx: which inputs of a layer change with one channel of the feature map before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array as JaxArray

from grl.arrays import Array, Dtype
from grl.weights.feature_order import BY_FEATURE, input_weight
from grl.weights.half import Part
from grl.weights.nnx_calls import watching_calls
from grl.weights.tree import ModelNode, grown

if TYPE_CHECKING:
    State: TypeAlias = nnx.State[Any, Any]
    Graph: TypeAlias = nnx.GraphDef[nnx.Module]

__all__ = ["Changed", "changed_inputs"]


_CHANNELS_LAST = ("Conv", "ConvTranspose", "BatchNorm", "GroupNorm", "InstanceNorm")  # channels first in PyTorch
_KEEP_ORDER = ("LayerNorm", "RMSNorm", "Dropout")
_SAMPLES = 5  # unchanged; more and less of one channel; more and less of the next
_CHANGE = 1e3  # within the range of float16, and too large for an activation to hide in both directions
_LARGEST = 1024  # pixels on a side
_MAPS = 8  # the experiment replaces at most this many maps, from the last one back


@dataclass(frozen=True)
class Changed:
    """The inputs of a layer that change with a channel.

    Args:
        first: (inputs,) of bool: whether each input changes with one channel of a feature map before the layer.
        second: the same for the next channel.
        direct: whether no layer between the map and this one mixes features.
        side: the side of the image, in pixels.
    """

    first: Array
    second: Array
    direct: bool
    side: int


class _ImageKind(NamedTuple):
    axes: int
    features: int
    dtype: Dtype

    def of_side(self, side: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((_SAMPLES, *[side] * self.axes, self.features), self.dtype)


def changed_inputs(model: nnx.Module, tree: ModelNode) -> dict[str, Changed] | None:
    """Return which inputs of each layer that takes vectors change with one channel and with the next.

    Args:
        model: an `nnx.Module`. It stays unchanged, and other threads may use it meanwhile.
        tree: the model's tree.

    Returns:
        nnx's name → the changed inputs, for each layer that a change reaches; None if the model does not take one
        square image, (N, H, W, C).
    """
    convolutions = [leaf.value for leaf in tree.leaves() if leaf.kind in ("Conv", "ConvTranspose")]
    kinds = dict.fromkeys(_ImageKind(len(one.kernel_size), one.in_features, one.param_dtype) for one in convolutions)
    model = nnx.clone(model)
    model.eval()
    graph, state = nnx.split(model)
    # With ones for weights, no scale of 0 blocks the change, and every layer passes it on.
    state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    experiment = _Experiment(graph, state)
    with jax.numpy_dtype_promotion("standard"):  # batch norm's statistics are float32 beside any parameters
        for kind in kinds:  # the first convolution to run is not known, so each one's input is tried as the image
            changed = experiment.changed_inputs(kind)
            if changed is not None:
                return changed
    return None


class _Result(NamedTuple):
    changed: dict[str, Changed]
    has_empty_map: bool


class _Experiment(NamedTuple):
    graph: Graph
    state: State

    def changed_inputs(self, kind: _ImageKind) -> dict[str, Changed] | None:
        side = _smallest_side(lambda side: self.trace(kind.of_side(side), _Watch()))
        if side is None:
            return None
        while True:
            result = self.changed_at(side, kind.of_side(side))
            if not result.has_empty_map or side > _LARGEST // 4:
                return result.changed
            side *= 2  # the mean over a map without a pixel is NaN, and shows no change

    def changed_at(self, side: int, image: jax.ShapeDtypeStruct) -> _Result:
        """Replace the last maps in turn, with an image of this side."""
        counting = _Watch()
        self.trace(image, counting)
        changed: dict[str, Changed] = {}
        has_empty_map = False
        last_maps = range(counting.maps)[: -_MAPS - 1 : -1]
        for replace_at in last_maps:
            watch = _Watch(replace_at)
            inputs = jax.jit(partial(self.run, watch=watch))(self.state, np.zeros(image.shape, image.dtype))
            for path, array in inputs.items():
                rows = np.asarray(array, np.float32)
                has_empty_map |= bool(np.isnan(rows).any())
                differences = np.abs(rows[1:] - rows[0])
                is_changed = differences > 1e-3 * differences.max()
                if is_changed.any() and path not in changed:
                    by_channel = is_changed.reshape(2, -1, is_changed.shape[-1]).any(1)
                    changed[path] = Changed(by_channel[0], by_channel[1], path in watch.direct, side)
        return _Result(changed, has_empty_map)

    def trace(self, image: jax.ShapeDtypeStruct, watch: _Watch) -> None:
        jax.eval_shape(partial(self.run, watch=watch), self.state, image)

    def run(self, state: State, x: JaxArray, watch: _Watch) -> dict[str, JaxArray]:
        """Return the inputs of the layers that take vectors, with one feature map replaced."""
        model: Part = nnx.merge(self.graph, state)
        watch.leaves = {id(leaf.value): leaf for leaf in grown(model).leaves() if leaf.rule is not None}
        with watching_calls([leaf.value for leaf in watch.leaves.values()], watch.around):
            model(x)
        return watch.inputs


class _MisfitError(Exception):
    """The image is too large for a layer (`surplus` > 0), or too small."""

    def __init__(self, surplus: int) -> None:
        super().__init__(surplus)
        self.surplus = surplus


def _smallest_side(trace: Callable[[int], object]) -> int | None:
    """Return the side of the smallest image that the model takes, by bisection: larger images give larger maps."""
    low, high, smallest = 1, _LARGEST, None
    while low <= high:
        side = (low + high) // 2
        try:
            trace(side)
            smallest, high = side, side - 1
        except _MisfitError as misfit:
            low, high = (low, side - 1) if misfit.surplus > 0 else (side + 1, high)
        except Exception:  # models raise anything for an image that is too small
            low = side + 1
    return smallest


@dataclass
class _Watch:
    """The observation of one run.

    Args:
        replace_at: the number of the feature map that is replaced; −1 for none.
        leaves: the layers, by the `id` of their modules.
        maps: the number of feature maps so far.
        inputs: the inputs of the layers that take vectors, by the layer's path.
        direct: the paths of the layers that a change reaches unmixed.
        mixed: whether a layer has mixed the features of the replaced map.
    """

    replace_at: int = -1
    leaves: dict[int, ModelNode] = field(default_factory=dict)
    maps: int = 0
    inputs: dict[str, JaxArray] = field(default_factory=dict)
    direct: set[str] = field(default_factory=set)
    mixed: bool = False

    def around(self, module: nnx.Module, usual: Callable[..., Part], x: Part, *args: Part, **kwargs: Part) -> Part:
        """Observe a call of a layer, and replace its output if it is the chosen map."""
        leaf = self.leaves.get(id(module))
        if leaf is None:  # a copy within a scan
            return usual(x, *args, **kwargs)
        self._observe(leaf, x)
        if leaf.kind in _KEEP_ORDER or (leaf.kind == "BatchNorm" and x.ndim == 2):
            return x  # a norm would make one changed channel change all the others too
        y = usual(x, *args, **kwargs)
        if leaf.kind in _CHANNELS_LAST and y.ndim > 2:
            y = _changed(y) if self.maps == self.replace_at else y
            self.mixed = self.maps != self.replace_at
            self.maps += 1
        else:
            self.mixed |= bool(leaf.slots) and leaf.kind != "GRL"
        return y

    def _observe(self, leaf: ModelNode, x: Part) -> None:
        if leaf.kind not in BY_FEATURE:
            return
        expected = (leaf.shapes.get(input_weight(leaf.kind)) or (0,))[-1]
        if "Norm" not in leaf.kind and x.shape[-1] != expected:
            raise _MisfitError(x.shape[-1] - expected)
        if self.maps > self.replace_at >= 0 and x.ndim >= 2 and leaf.path not in self.inputs:
            self.inputs[leaf.path] = x
            self.direct |= set() if self.mixed else {leaf.path}


def _changed(y: JaxArray) -> JaxArray:
    """Return a feature map of zeros, (5, …, C), with two neighbouring channels changed."""
    if len(y) != _SAMPLES or y.shape[-1] < 2:
        return y
    pixels = [1] * (y.ndim - 2)
    change = np.zeros((_SAMPLES, *pixels, y.shape[-1]))
    change[1:, ..., :2] = np.reshape([[1, 0], [-1, 0], [0, 1], [0, -1]], (4, *pixels, 2)) * _CHANGE
    return jnp.broadcast_to(jnp.asarray(change, y.dtype), y.shape)
