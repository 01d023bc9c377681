"""A model's weights through a file that both frameworks read: safetensors, with PyTorch's names and layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np

from grl.arrays import Weights
from grl.weights.file_tree import described, file_tree
from grl.weights.flattened import find_flattened
from grl.weights.layouts import in_nnx_layout, in_torch_layout
from grl.weights.matching import correspond
from grl.weights.slot import PortError, Slot, read_all, write_all
from grl.weights.tree import Node, grown, joined
from grl.weights_file import CheckpointError, check_weights, load_metadata, load_weights, save_weights

__all__ = ["load_portable", "portable_weights", "save_portable", "set_portable_weights"]


def save_portable(model: Any, path: str | PathLike[str], *, flatten: Mapping[str, Sequence[int]] | None = None) -> None:
    """Write a model's parameters and statistics to a safetensors file, whole or not at all.

    The file has PyTorch's names and layouts, whichever side writes it: (out, in), (out, in, *k), the inputs of a layer
    behind a flattened feature map in the order (C, H, W). bfloat16 becomes float32, which holds it exactly.

    Args:
        model: an `nn.Module` or an `nnx.Module`.
        path: the file.
        flatten: as for `copy_weights`.

    Raises:
        TypeError: the model is neither.
        PortError: a number is NaN or infinite; a layer has an array that PyTorch's has not; the order of a flattened
            map is unknown.
        OSError: the file cannot be written.

    Example:
        `save_portable(torch_model, "model.safetensors")`, and then `load_portable(nnx_model, "model.safetensors")`.
    """
    weights = portable_weights(model, flatten)
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise PortError(f"{name}: holds NaN or infinity, which a portable file does not.")
    save_weights(path, weights, described(grown(model)))


def load_portable(
    model: Any,
    path: str | PathLike[str],
    *,
    names: Mapping[str, str] | None = None,
    flatten: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Read the parameters and statistics of a model, in place, from a file that either framework has written.

    `save_portable` writes such files, `grl train` does (`model.safetensors`), and so is a PyTorch `state_dict` of
    parameters and statistics. Names that differ are paired by structure, as by `pair`, in files of `save_portable`,
    which say the order of the layers. The model keeps its dtypes and devices. If anything is wrong it stays as it was.

    Args:
        model: an `nn.Module` or an `nnx.Module`.
        path: the file.
        names: name in the file → the model's, of layers that cannot be paired by themselves.
        flatten: as for `copy_weights`.

    Raises:
        TypeError: the model is neither.
        CheckpointError: the file is missing, truncated, no safetensors, or of another model: a name is missing or too
            many, a shape differs, a number is not finite or does not fit.
        PortError: the order of a flattened map is unknown; a name in `names` is.
    """
    tree = grown(model)
    weights = {name: array for name, array in load_weights(path).items() if not name.endswith("num_batches_tracked")}
    written = file_tree(load_metadata(path), weights, fspath(path))
    weights = _completed(_renamed(weights, written, tree, names or {}), tree)
    expected: Weights = {}
    for leaf in tree.leaves():
        expected |= _named(leaf, leaf.canonical())
    unchecked = {name for leaf in tree.leaves() for name in _named(leaf, leaf.shapes) if None in leaf.shapes.values()}
    check_weights(fspath(path), weights, expected | {name: weights[name] for name in unchecked & weights.keys()})
    try:
        set_portable_weights(model, weights, flatten)
    except PortError as error:
        raise CheckpointError(f"{fspath(path)}: {error}") from error


def portable_weights(model: Any, flatten: Mapping[str, Sequence[int]] | None = None) -> Weights:
    """Return what `save_portable` writes: name → array, in PyTorch's names and layouts.

    Args:
        model: an `nn.Module` or an `nnx.Module`.
        flatten: as for `copy_weights`.

    Raises:
        PortError: a layer has an array that PyTorch's layer of its kind has not; the order of a map is unknown.
    """
    tree = grown(model)
    flattened = find_flattened(model, flatten) if tree.side == "nnx" else {}
    weights: Weights = {}
    for leaf in tree.leaves():
        if strange := leaf.not_carried():
            raise PortError(f"{joined(leaf.path, min(strange))}: PyTorch's {leaf.kind} has no such array.")
        arrays = read_all(leaf.slots)
        if tree.side == "nnx":
            arrays = in_torch_layout(leaf.rule, leaf.value, arrays, flattened.get(leaf.path))
        weights |= _named(leaf, arrays)
    return weights


def set_portable_weights(model: Any, weights: Weights, flatten: Mapping[str, Sequence[int]] | None = None) -> None:
    """Put weights with PyTorch's names and layouts into a model, all or none.

    Args:
        model: an `nn.Module` or an `nnx.Module`; an abstract one (`nnx.eval_shape`) becomes a concrete one.
        weights: as `portable_weights` returns them.
        flatten: as for `copy_weights`.

    Raises:
        PortError: an array does not fit, or is one that nnx has no place for; the order of a map is unknown.
    """
    tree = grown(model)
    flattened = find_flattened(model, flatten) if tree.side == "nnx" else {}
    arrays: Weights = {}
    slots: dict[str, Slot] = {}
    for leaf in tree.leaves():
        mine = {name: weights[joined(leaf.name, name)] for name in leaf.shapes}
        if tree.side == "nnx":
            try:
                mine = in_nnx_layout(leaf.rule, leaf.value, mine, flattened.get(leaf.path))
            except ValueError as error:
                raise PortError(f"{leaf.path}: {error}.") from error
        arrays |= {joined(leaf.path, name): array for name, array in mine.items()}
        slots |= {joined(leaf.path, name): slot for name, slot in leaf.slots.items()}
    write_all(slots, arrays)


def _named(leaf: Node, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {joined(leaf.name, name): array for name, array in arrays.items()}


def _renamed(weights: Weights, written: Node | None, tree: Node, names: Mapping[str, str]) -> Weights:
    """The arrays of a file by the names of the model."""
    if written is None:
        moved = {joined(old, ""): new for old, new in names.items()}
        return {_moved(name, moved): array for name, array in weights.items()}
    if not names and weights.keys() == {name for leaf in tree.leaves() for name in _named(leaf, leaf.shapes)}:
        return weights
    moved = {a.name: b.name for a, b, _ in correspond(written, tree, names).found if a.is_leaf}
    return {_moved(name, moved): array for name, array in weights.items()}


def _moved(name: str, moved: Mapping[str, str]) -> str:
    """A name whose beginning is another one in the model; the longest counts."""
    for old in sorted(moved, key=len, reverse=True):
        if name == old or name.startswith(f"{old}."):
            return moved[old] + name.removeprefix(old)
    return name


def _completed(weights: Weights, tree: Node) -> Weights:
    """The arrays of a file with biases of 0 added that the model has and the file has not, or the other way round."""
    found = dict(weights)
    for leaf in tree.leaves():
        for name in leaf.rule.optional if leaf.rule is not None else ():
            key, here = joined(leaf.name, name), leaf.canonical().get(name)
            if here is None and key in found and not found[key].any():
                del found[key]
            elif here is not None:
                found.setdefault(key, here)
    return found
