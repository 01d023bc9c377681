"""Recurrent cells: the order of the gates, and PyTorch's two biases where nnx has one.

nnx's bias is the sum of PyTorch's two. In the other direction it becomes `bias_ih`, and `bias_hh` becomes 0: the sum is
the same, and so is every output. nnx's GRU has no bias within r · (W·h + b) of its candidate, so PyTorch's must be 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from grl.arrays import Array, Weights
from grl.weights.half import Part

__all__ = ["OPTIONAL", "cell_kind", "gradients", "to_nnx", "to_torch"]

_KINDS = {"LSTMCell": "LSTM", "OptimizedLSTMCell": "LSTM", "GRUCell": "GRU", "SimpleCell": "RNN"}
_SUFFIXES = ("", "_l0", "_l0_reverse")
OPTIONAL = frozenset(f"bias_{part}{suffix}" for part in ("ih", "hh") for suffix in _SUFFIXES)
"""PyTorch's biases, which bias=False leaves out. nnx always has its bias."""

_GATES = {  # nnx.LSTMCell: one Linear per gate, here in PyTorch's order i, f, g, o
    "weight_ih": ("ii.kernel", "if_.kernel", "ig.kernel", "io.kernel"),
    "weight_hh": ("hi.kernel", "hf.kernel", "hg.kernel", "ho.kernel"),
    "bias": ("hi.bias", "hf.bias", "hg.bias", "ho.bias"),
}


class _Cell(NamedTuple):
    """A cell within an nnx module.

    Args:
        module: the cell.
        prefix: the start of its arrays' names within the nnx module.
        suffix: the end of its arrays' names in PyTorch.
    """

    module: Part
    prefix: str
    suffix: str


def cell_kind(module: Part) -> str | None:
    """Return LSTM, GRU or RNN for an nnx cell, an `nnx.RNN` of one, or an `nnx.Bidirectional` of two; else None."""
    kinds = {_kind(cell.module) for cell in _cells(module)}
    return kinds.pop() if len(kinds) == 1 else None


def _kind(cell: Part) -> str | None:
    return next((_KINDS[base.__name__] for base in type(cell).__mro__ if base.__name__ in _KINDS), None)


def to_torch(arrays: Weights, module: Part) -> Weights:
    """Return one array for all gates, (gates · hidden, in). The second bias is 0."""
    return _to_torch(arrays, module, np.zeros_like)


def gradients(arrays: Weights, module: Part) -> Weights:
    """Return the same for gradients: the two biases have one gradient. A GRU's `bias_hh` has no counterpart."""
    converted = _to_torch(arrays, module, np.array)
    if cell_kind(module) == "GRU":
        return {name: array for name, array in converted.items() if "bias_hh" not in name}
    return converted


def to_nnx(arrays: Weights, module: Part) -> Weights:
    """Return the inverse of `to_torch`. The two biases are added.

    Raises:
        ValueError: a GRU has a bias that nnx lacks.
    """
    converted: Weights = {}
    for cell in _cells(module):
        for name in ("weight_ih", "weight_hh"):
            if f"{name}{cell.suffix}" in arrays:
                converted |= _split(arrays[f"{name}{cell.suffix}"], name, cell)
        if f"weight_hh{cell.suffix}" not in arrays:
            continue
        zeros = np.zeros_like(arrays[f"weight_hh{cell.suffix}"][:, 0])
        input_bias = arrays.get(f"bias_ih{cell.suffix}", zeros)
        hidden_bias = arrays.get(f"bias_hh{cell.suffix}", zeros)
        if _kind(cell.module) == "GRU" and hidden_bias[2 * len(hidden_bias) // 3 :].any():
            raise ValueError(
                f"bias_hh{cell.suffix} of the candidate (its last third) is not 0, and nnx.GRUCell has no such bias"
            )
        converted |= _split(input_bias + hidden_bias if hidden_bias.any() else input_bias, "bias", cell)
    return converted


def _to_torch(arrays: Weights, module: Part, second_bias: Callable[[Array], Array]) -> Weights:
    converted: Weights = {}
    for cell in _cells(module):
        for name in ("weight_ih", "weight_hh"):
            converted[f"{name}{cell.suffix}"] = _joined(arrays, name, cell)
        bias = _joined(arrays, "bias", cell)
        converted[f"bias_ih{cell.suffix}"] = bias
        converted[f"bias_hh{cell.suffix}"] = second_bias(bias)
    return converted


def _cells(module: Part) -> list[_Cell]:
    """Return the cells of an nnx module."""
    if hasattr(module, "forward_rnn"):
        return [
            _cell_of(module.forward_rnn, "forward_rnn.", "_l0"),
            _cell_of(module.backward_rnn, "backward_rnn.", "_l0_reverse"),
        ]
    return [_cell_of(module, "", "_l0" if hasattr(module, "cell") else "")]


def _cell_of(module: Part, prefix: str, suffix: str) -> _Cell:
    """Return the cell of an `nnx.RNN`, or the module itself."""
    if hasattr(module, "cell"):
        return _Cell(module.cell, f"{prefix}cell.", suffix)
    return _Cell(module, prefix, suffix)


def _names(name: str, cell: _Cell) -> tuple[str, ...]:
    """Return nnx's names of an array of PyTorch's: one per gate, or one for all."""
    if hasattr(cell.module, "ii"):
        return _GATES[name]
    bias = "dense_h.bias" if _kind(cell.module) == "LSTM" else "dense_i.bias"
    return ({"weight_ih": "dense_i.kernel", "weight_hh": "dense_h.kernel", "bias": bias}[name],)


def _joined(arrays: Weights, name: str, cell: _Cell) -> Array:
    return np.concatenate([arrays[f"{cell.prefix}{nnx_name}"].T for nnx_name in _names(name, cell)])


def _split(array: Array, name: str, cell: _Cell) -> Weights:
    names = _names(name, cell)
    return {
        f"{cell.prefix}{nnx_name}": piece.T for nnx_name, piece in zip(names, np.split(array, len(names)), strict=True)
    }
