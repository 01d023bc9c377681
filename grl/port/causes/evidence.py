"""What an experiment on a divergence of activations works with: both models in float64, and where they part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from grl.port.closeness import agree
from grl.port.runs.nnx_model import JaxModel
from grl.port.runs.recording import LOSS, OUTPUT, Array, Key
from grl.port.runs.torch_functions import Call, Change
from grl.port.runs.torch_model import TorchModel
from grl.weights.feature_order import to_channels_first

__all__ = ["Evidence", "arguments", "with_arguments"]

Variant = tuple[str, Change]
"""What is changed, in words, and the change."""

_LOSSES = "the loss"


@dataclass
class Evidence:
    """A divergence: the first activation that differs while all before it agree.

    Args:
        torch: the PyTorch model in float64.
        jax: the nnx model in float64.
        key: the layer and the call whose result differs, by its PyTorch name; or the output, or the loss.
        their_key: the same by its nnx name.
        theirs: what the nnx model gives there.
        ended: how many watched layers had ended by then.
        layer: the layer of the nnx model there, if it is one.
        replacements: by PyTorch name, the weights of the nnx model where they are not those of the PyTorch model.
        slack: what rounding explains there.
        channels: how many there may be in a flattened feature map.
        proven: the call that was changed by the experiment that explained the divergence.
    """

    torch: TorchModel
    jax: JaxModel
    key: Key
    their_key: Key
    theirs: list[Array]
    ended: int
    layer: Any
    replacements: Mapping[str, Array]
    slack: float
    channels: frozenset[int] = frozenset()
    proven: Call | None = None
    _with_theirs: bool | None = None

    @cached_property
    def between(self) -> list[Call]:
        """The calls of functions between the last layer that agrees and the one that differs, the last one first."""
        if self.key == LOSS:
            return self._calls_of_loss(self._calls)[::-1]
        return [call for call, ended in self._calls if ended >= self.ended][::-1]

    @cached_property
    def _calls(self) -> list[tuple[Call, int]]:
        return self.torch.calls(None if self.key in (OUTPUT, LOSS) else self.key)

    def _calls_of_loss(self, calls: list[tuple[Call, int]]) -> list[Call]:
        last = max((ended for _, ended in calls), default=0)
        return [call for call, ended in calls if ended == last and not call.module]

    def explains(self, changes: Mapping[int, Change]) -> bool:
        """Whether the PyTorch model gives what the nnx model gives, once functions are changed."""
        try:
            ours = self.torch.activation(self.key, changes)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
            return False  # with the change the model does not run: it is not what the other one does
        return agree(ours, self.theirs, self.slack, self.channels)

    def try_out(self, names: Iterable[str], variants: Any, earlier: bool = False) -> str | None:
        """Change one call after the other; return in words what explains the divergence, or None.

        Args:
            names: of the functions to change.
            variants: a function of a call and the nnx layer, to the variants to try.
            earlier: whether to change the calls before the last layer that agrees as well.
        """
        before = [call for call, ended in self._calls if ended < self.ended][::-1] if earlier else []
        for call in (*self.between, *before):
            if call.name in names:
                found: Iterator[Variant] = variants(call, self.layer)
                for words, change in found:
                    if self.explains({call.index: change}):
                        self.proven = call
                        return words
        return None

    def with_their_weights(self) -> bool:
        """Whether the PyTorch model with the nnx model's weights, where they differ, gives what the nnx model gives.

        Behind a flattened map nobody can tell from foreign weights in which order their inputs are: each is tried.
        """
        if self._with_theirs is None:
            self._with_theirs = bool(self.replacements) and any(map(self._explained_by, self._orders()))
        return self._with_theirs

    def _explained_by(self, weights: Mapping[str, Array]) -> bool:
        with self.torch.with_parameters(weights):
            return self.explains({})

    def _orders(self) -> Iterator[Mapping[str, Array]]:
        yield self.replacements
        sizes = {array.shape[-1] for array in self.replacements.values() if array.ndim == 2}
        divisors = [c for size in sizes for c in range(2, size // 2 + 1) if size % c == 0]
        for channels in dict.fromkeys((*sorted(self.channels), *divisors)):
            yield {
                name: to_channels_first(a, channels) if a.ndim == 2 and a.shape[-1] % channels == 0 else a
                for name, a in self.replacements.items()
            }

    def without_their_dropout(self) -> str | None:
        """Switch off the nnx model's dropout, where it is the only one; return in words whether that is it."""
        self.jax.without_dropout = self.torch.without_dropout = True
        try:
            seen = self.jax.run()
            theirs = seen.activations.get(self.their_key)
            ours = self.torch.activation(self.key)
            if seen.dropouts and theirs is not None and agree(ours, theirs, self.slack, self.channels):
                return "without the nnx model's dropout there is no difference"
        finally:
            self.jax.without_dropout = self.torch.without_dropout = False
        return None


_SIGNATURES = {
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d"), ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    ),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
    "linear": ("input", "weight", "bias"),
    **dict.fromkeys(
        ("max_pool1d", "max_pool2d", "max_pool3d"),
        ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    ),
    "avg_pool1d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    **dict.fromkeys(
        ("avg_pool2d", "avg_pool3d"),
        ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "instance_norm": (
        *("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    ),
    "gelu": ("input", "approximate"),
    "interpolate": ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias"),
    "grid_sample": ("input", "grid", "mode", "padding_mode", "align_corners"),
    "affine_grid": ("theta", "size", "align_corners"),
    "cross_entropy": (
        *("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing"),
    ),
}


def arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; those of most of PyTorch's functions cannot be asked of Python."""
    return dict(zip(_SIGNATURES[name], args, strict=False)) | kwargs


def with_arguments(name: str, **changed: Any) -> Change:
    """Return the change that gives some arguments of a function other values."""

    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(**(arguments(name, args, kwargs) | changed))

    return change
