"""`nn.MultiheadAttention` and `nnx.MultiHeadAttention`: three projections in one, heads in their own axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from grl.arrays import Weights

__all__ = ["NAMES", "to_nnx", "to_torch"]

_PARTS = ("query", "key", "value")
_SEPARATE = {"query": "q_proj_weight", "key": "k_proj_weight", "value": "v_proj_weight"}
NAMES = {
    "in_proj_weight": "query.kernel",
    "in_proj_bias": "query.bias",
    "out_proj.weight": "out.kernel",
    "out_proj.bias": "out.bias",
    **{name: f"{part}.kernel" for part, name in _SEPARATE.items()},
}
"""PyTorch's name → nnx's, for messages."""


def to_torch(arrays: Weights, module: Any) -> Weights:
    """(E, heads, E / heads) each of nnx → (3·E, E) of PyTorch; three arrays where keys and values have other sizes."""
    found: Weights = {}
    if all(f"{part}.kernel" in arrays for part in _PARTS):
        weights = [_rows(arrays[f"{part}.kernel"]) for part in _PARTS]
        if len({weight.shape for weight in weights}) == 1:  # then PyTorch packs them
            found["in_proj_weight"] = np.concatenate(weights)
        else:
            found |= {_SEPARATE[part]: weight for part, weight in zip(_PARTS, weights, strict=True)}
    if all(f"{part}.bias" in arrays for part in _PARTS):
        found["in_proj_bias"] = np.concatenate([arrays[f"{part}.bias"].reshape(-1) for part in _PARTS])
    if "out.kernel" in arrays:
        found["out_proj.weight"] = arrays["out.kernel"].reshape(-1, arrays["out.kernel"].shape[-1]).T
    if "out.bias" in arrays:
        found["out_proj.bias"] = arrays["out.bias"]
    return found


def to_nnx(arrays: Weights, module: Any) -> Weights:
    """The inverse of `to_torch`."""
    heads = {"query": module.num_heads, "key": module.num_kv_heads, "value": module.num_kv_heads}
    found: Weights = {}
    packed = arrays.get("in_proj_weight")
    for i, part in enumerate(_PARTS):
        weight = arrays.get(_SEPARATE[part]) if packed is None else np.split(packed, 3)[i]
        if weight is not None:
            found[f"{part}.kernel"] = weight.T.reshape(weight.shape[1], heads[part], -1)
        if "in_proj_bias" in arrays:
            found[f"{part}.bias"] = np.split(arrays["in_proj_bias"], 3)[i].reshape(heads[part], -1)
    if "out_proj.weight" in arrays:
        weight = arrays["out_proj.weight"]
        found["out.kernel"] = weight.T.reshape(module.num_heads, -1, weight.shape[0])
    if "out_proj.bias" in arrays:
        found["out.bias"] = arrays["out_proj.bias"]
    return found


def _rows(kernel: Any) -> Any:
    """(in, heads, size) → (heads · size, in)."""
    return kernel.reshape(kernel.shape[0], -1).T
