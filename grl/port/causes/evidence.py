"""What an experiment on a divergence of activations works with: both models in float64, and the array that differs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from grl.port.closeness import agree
from grl.port.runs.nnx_model import JaxModel
from grl.port.runs.recording import LOSS, OUTPUT, Array, Key
from grl.port.runs.torch_functions import Args, Call, Change, Function, Kwargs
from grl.port.runs.torch_model import TorchModel
from grl.weights.feature_order import to_channels_first

__all__ = ["Evidence", "Experiment", "Proof", "Variant", "Variants", "arguments", "with_arguments"]

Variant = tuple[str, Change]
"""What is changed, in words, and the change."""

Variants = Callable[[Call, Any], Iterator[Variant]]
"""A function of a call and the nnx layer, to the changes to try."""


class Proof(NamedTuple):
    """An experiment whose result is the nnx model's.

    Args:
        words: what was changed, in words.
        call: the call of PyTorch's function that was changed; None if none was.
    """

    words: str
    call: Call | None = None


class Experiment(Protocol):
    """Tests one cause; its `__name__` is the cause's identifier."""

    __name__: str

    def __call__(self, evidence: Evidence, /) -> Proof | None:
        """Return the proof if the change explains the divergence up to rounding, else None."""


@dataclass(frozen=True)
class Evidence:
    """A divergence: the first activation that differs while all before it agree.

    Args:
        torch: the PyTorch model in float64.
        nnx: the nnx model in float64.
        key: the layer and the call whose result differs, by its PyTorch name; or the output, or the loss.
        nnx_key: the same by its nnx name.
        nnx_arrays: the result of the nnx model.
        ended: how many watched layers had ended before.
        layer: the layer of the nnx model; None if there is none.
        replacements: by PyTorch's name, the weights of the nnx model where they are not those of the PyTorch model.
        slack: the difference that rounding explains.
        channels: how many channels a flattened feature map may have.
    """

    torch: TorchModel
    nnx: JaxModel
    key: Key
    nnx_key: Key
    nnx_arrays: list[Array]
    ended: int
    layer: Any
    replacements: Mapping[str, Array]
    slack: float
    channels: frozenset[int] = frozenset()

    @cached_property
    def between(self) -> list[Call]:
        """The calls of functions between the last layer that agrees and the one that differs, the last one first."""
        if self.key == LOSS:
            last = max((ended for _, ended in self._calls), default=0)
            return [call for call, ended in self._calls if ended == last and not call.module][::-1]
        return [call for call, ended in self._calls if ended >= self.ended][::-1]

    @cached_property
    def _calls(self) -> list[tuple[Call, int]]:
        return self.torch.calls(None if self.key in (OUTPUT, LOSS) else self.key)

    def explains(self, changes: Mapping[int, Change]) -> bool:
        """Return whether the PyTorch model gives the nnx model's result once functions are changed."""
        try:
            torch_arrays = self.torch.activation(self.key, changes)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
            return False  # with the change the model does not run, but the nnx model does
        return agree(torch_arrays, self.nnx_arrays, self.slack, self.channels)

    def try_out(self, names: Collection[str], variants: Variants, earlier: bool = False) -> Proof | None:
        """Change one call after the other; return the change that explains the divergence, or None.

        Args:
            names: of the functions to change.
            variants: the changes to try.
            earlier: whether to change the calls before the last layer that agrees as well.
        """
        before = [call for call, ended in self._calls if ended < self.ended][::-1] if earlier else []
        for call in (*self.between, *before):
            if call.name in names:
                for words, change in variants(call, self.layer):
                    if self.explains({call.index: change}):
                        return Proof(words, call)
        return None

    @cached_property
    def weights_explain_it(self) -> bool:
        """Whether the PyTorch model with the nnx model's weights, where they differ, gives the nnx model's result.

        Behind a flattened map the weights do not show in which order their inputs are: each order is tried.
        """
        return bool(self.replacements) and any(map(self._explained_by, self._orders()))

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

    def without_nnx_dropout(self) -> Proof | None:
        """Switch off dropout in both models; return the proof if only the nnx model's makes the difference."""
        run = self.nnx.run(without_dropout=True)
        nnx_arrays = run.activations.get(self.nnx_key)
        torch_arrays = self.torch.activation(self.key, without_dropout=True)
        if run.dropouts and nnx_arrays is not None and agree(torch_arrays, nnx_arrays, self.slack, self.channels):
            return Proof("without the nnx model's dropout there is no difference")
        return None


_SIGNATURES: dict[str, tuple[str, ...]] = {
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
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "use_input_stats",
        "momentum",
        "eps",
    ),
    "gelu": ("input", "approximate"),
    "interpolate": ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias"),
    "grid_sample": ("input", "grid", "mode", "padding_mode", "align_corners"),
    "affine_grid": ("theta", "size", "align_corners"),
    "cross_entropy": (
        "input",
        "target",
        "weight",
        "size_average",
        "ignore_index",
        "reduce",
        "reduction",
        "label_smoothing",
    ),
}


def arguments(name: str, args: Args, kwargs: Kwargs) -> dict[str, Any]:
    """Return the arguments of a call by name; Python's `inspect` does not know those of most of PyTorch's functions."""
    return dict(zip(_SIGNATURES[name], args, strict=False)) | kwargs


def with_arguments(name: str, **changed: object) -> Change:
    """Return the change that gives some arguments of a function other values."""

    def change(function: Function, args: Args, kwargs: Kwargs) -> Any:
        return function(**(arguments(name, args, kwargs) | changed))

    return change
