"""`nn.MultiheadAttention` and `nnx.MultiHeadAttention`: a packed projection, or three with an axis of heads each."""

from __future__ import annotations

import numpy as np

from grl.arrays import Array, Weights
from grl.weights.half import Part

__all__ = ["NAMES", "to_nnx", "to_torch"]

_PROJECTIONS = ("query", "key", "value")
_SEPARATE = {"query": "q_proj_weight", "key": "k_proj_weight", "value": "v_proj_weight"}
NAMES = {
    "in_proj_weight": "query.kernel",
    "in_proj_bias": "query.bias",
    "out_proj.weight": "out.kernel",
    "out_proj.bias": "out.bias",
    **{name: f"{projection}.kernel" for projection, name in _SEPARATE.items()},
}
"""PyTorch's name → nnx's, for messages."""


def to_torch(arrays: Weights, module: Part) -> Weights:
    """Pack nnx's projections, (E, heads, E / heads) each, into PyTorch's (3·E, E).

    PyTorch keeps three arrays instead if keys or values have another size than the queries.
    """
    converted: Weights = {}
    if all(f"{projection}.kernel" in arrays for projection in _PROJECTIONS):
        weights = {projection: _rows(arrays[f"{projection}.kernel"]) for projection in _PROJECTIONS}
        if len({weight.shape for weight in weights.values()}) == 1:
            converted["in_proj_weight"] = np.concatenate(list(weights.values()))
        else:
            converted |= {_SEPARATE[projection]: weight for projection, weight in weights.items()}
    if all(f"{projection}.bias" in arrays for projection in _PROJECTIONS):
        biases = [arrays[f"{projection}.bias"].reshape(-1) for projection in _PROJECTIONS]
        converted["in_proj_bias"] = np.concatenate(biases)
    if "out.kernel" in arrays:
        converted["out_proj.weight"] = arrays["out.kernel"].reshape(-1, arrays["out.kernel"].shape[-1]).T
    if "out.bias" in arrays:
        converted["out_proj.bias"] = arrays["out.bias"]
    return converted


def to_nnx(arrays: Weights, module: Part) -> Weights:
    """Return the inverse of `to_torch`."""
    heads = {"query": module.num_heads, "key": module.num_kv_heads, "value": module.num_kv_heads}
    converted: Weights = {}
    packed = arrays.get("in_proj_weight")
    for index, projection in enumerate(_PROJECTIONS):
        weight = arrays.get(_SEPARATE[projection]) if packed is None else np.split(packed, 3)[index]
        if weight is not None:
            converted[f"{projection}.kernel"] = weight.T.reshape(weight.shape[1], heads[projection], -1)
        if "in_proj_bias" in arrays:
            bias = np.split(arrays["in_proj_bias"], 3)[index]
            converted[f"{projection}.bias"] = bias.reshape(heads[projection], -1)
    if "out_proj.weight" in arrays:
        weight = arrays["out_proj.weight"]
        converted["out.kernel"] = weight.T.reshape(module.num_heads, -1, weight.shape[0])
    if "out_proj.bias" in arrays:
        converted["out.bias"] = arrays["out_proj.bias"]
    return converted


def _rows(kernel: Array) -> Array:
    """(in, heads, size) → (heads · size, in)."""
    return kernel.reshape(kernel.shape[0], -1).T
