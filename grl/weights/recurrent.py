"""Recurrent cells: the order of the gates, and two biases in PyTorch where nnx has one.

The one bias of nnx is the sum of PyTorch's two. On the way back it becomes `bias_ih`, and `bias_hh` becomes 0: the sum
is the same, and so is every output. nnx's GRU has no bias within r · (W·h + b) of its candidate: PyTorch's has to be 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from grl.arrays import Weights

__all__ = ["OPTIONAL", "cell_kind", "gradients", "to_nnx", "to_torch"]

_CELLS = {"LSTMCell": "LSTM", "OptimizedLSTMCell": "LSTM", "GRUCell": "GRU", "SimpleCell": "RNN"}
_SUFFIXES = ("", "_l0", "_l0_reverse")
OPTIONAL = frozenset(f"bias_{part}{suffix}" for part in ("ih", "hh") for suffix in _SUFFIXES)
"""What PyTorch has not with bias=False, and nnx always has."""

_GATES = {  # one Linear per gate; all others keep them in one, in PyTorch's order: i, f, g, o and r, z, n
    "weight_ih": ("ii.kernel", "if_.kernel", "ig.kernel", "io.kernel"),
    "weight_hh": ("hi.kernel", "hf.kernel", "hg.kernel", "ho.kernel"),
    "bias": ("hi.bias", "hf.bias", "hg.bias", "ho.bias"),
}


def cell_kind(module: Any) -> str | None:
    """Return LSTM, GRU or RNN for an nnx cell, an `nnx.RNN` of one, or an `nnx.Bidirectional` of two such."""
    kinds = {
        next((_CELLS[c.__name__] for c in type(cell).__mro__ if c.__name__ in _CELLS), None)
        for *_, cell in _cells(module)
    }
    return kinds.pop() if len(kinds) == 1 else None


def to_torch(arrays: Weights, module: Any) -> Weights:
    """One array for all gates, (gates · hidden, in); the second bias is 0."""
    return _to_torch(arrays, module, np.zeros_like)


def gradients(arrays: Weights, module: Any) -> Weights:
    """The same for gradients: both biases, which are added, have one gradient; a GRU's `bias_hh` has no counterpart."""
    found = _to_torch(arrays, module, np.array)
    return {name: array for name, array in found.items() if not (cell_kind(module) == "GRU" and "bias_hh" in name)}


def to_nnx(arrays: Weights, module: Any) -> Weights:
    """The inverse; both biases are added.

    Raises:
        ValueError: a GRU with a bias that nnx has not.
    """
    found: Weights = {}
    for prefix, suffix, cell in _cells(module):
        kind = cell_kind(cell)
        for part in ("weight_ih", "weight_hh"):
            if f"{part}{suffix}" in arrays:
                found |= _split(arrays[f"{part}{suffix}"], part, cell, prefix)
        if f"weight_hh{suffix}" not in arrays:
            continue
        none = np.zeros_like(arrays[f"weight_hh{suffix}"][:, 0])
        input_bias, hidden_bias = (arrays.get(f"bias_{part}{suffix}", none) for part in ("ih", "hh"))
        if kind == "GRU" and hidden_bias[2 * len(hidden_bias) // 3 :].any():
            raise ValueError(
                f"bias_hh{suffix} of the candidate (its last third) is not 0, and nnx.GRUCell has no such bias"
            )
        found |= _split(input_bias + hidden_bias if hidden_bias.any() else input_bias, "bias", cell, prefix)
    return found


def _to_torch(arrays: Weights, module: Any, other_bias: Callable[[Any], Any]) -> Weights:
    found: Weights = {}
    for prefix, suffix, cell in _cells(module):
        for part in ("weight_ih", "weight_hh"):
            found[f"{part}{suffix}"] = _joined(arrays, part, cell, prefix)
        bias = _joined(arrays, "bias", cell, prefix)
        found[f"bias_ih{suffix}"], found[f"bias_hh{suffix}"] = bias, other_bias(bias)
    return found


def _cells(module: Any, prefix: str = "", suffix: str | None = None) -> list[tuple[str, str, Any]]:
    """Where each cell is in an nnx module, what PyTorch appends to its names, and the cell."""
    if hasattr(module, "forward_rnn"):
        directions = (("forward_rnn", "_l0"), ("backward_rnn", "_l0_reverse"))
        return [_cells(getattr(module, name), f"{name}.", end)[0] for name, end in directions]
    if hasattr(module, "cell"):
        return [(f"{prefix}cell.", suffix or "_l0", module.cell)]
    return [(prefix, suffix or "", module)]


def _names(part: str, cell: Any) -> tuple[str, ...]:
    if hasattr(cell, "ii"):
        return _GATES[part]
    bias = "dense_h.bias" if cell_kind(cell) == "LSTM" else "dense_i.bias"
    return ({"weight_ih": "dense_i.kernel", "weight_hh": "dense_h.kernel", "bias": bias}[part],)


def _joined(arrays: Weights, part: str, cell: Any, prefix: str) -> Any:
    return np.concatenate([arrays[f"{prefix}{name}"].T for name in _names(part, cell)])


def _split(array: Any, part: str, cell: Any, prefix: str) -> Weights:
    names = _names(part, cell)
    return {f"{prefix}{name}": piece.T for name, piece in zip(names, np.split(array, len(names)), strict=True)}
