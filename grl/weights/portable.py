"""A model's weights in a file for both frameworks: safetensors, with PyTorch's names and layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from grl.arrays import Weights
from grl.weights.file_tree import described, file_tree
from grl.weights.flattened import find_flattened
from grl.weights.layouts import in_nnx_layout, in_torch_layout
from grl.weights.matching import correspond
from grl.weights.slot import PortError, Slot, read_all, write_all
from grl.weights.tree import ModelNode, Node, grown, joined
from grl.weights_file import WeightsFileError, check_weights, load_metadata, load_weights, save_weights

if TYPE_CHECKING:
    from grl.weights.half import Model

__all__ = ["load_portable", "portable_weights", "save_portable", "set_portable_weights"]

T = TypeVar("T")


def save_portable(
    model: Model, path: str | PathLike[str], *, flatten: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Write a model's parameters and statistics to a safetensors file, whole or not at all.

    Either framework writes PyTorch's names and layouts: (out, in), (out, in, *k), and the inputs of a layer behind a
    flattened feature map in the order (C, H, W). bfloat16 becomes float32, which represents it exactly.

    Args:
        model: an `nn.Module` or an `nnx.Module`.
        path: the file.
        flatten: as for `copy_weights`.

    Raises:
        TypeError: the model is neither.
        PortError: a number is NaN or infinite; a layer has an array that PyTorch's layer lacks; the order of a
            flattened map is unknown.
        OSError: the file cannot be written.

    Example:
        `save_portable(torch_model, "model.safetensors")`, and then `load_portable(nnx_model, "model.safetensors")`.
    """
    weights = portable_weights(model, flatten)
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise PortError(f"{name}: holds NaN or infinity; expected finite numbers in a portable file.")
    save_weights(path, weights, described(grown(model)))


def load_portable(
    model: Model,
    path: str | PathLike[str],
    *,
    names: Mapping[str, str] | None = None,
    flatten: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Read the parameters and statistics of a model, in place, from a file that either framework has written.

    Such files come from `save_portable`, from `grl train` (`model.safetensors`), and from a PyTorch `state_dict` of
    parameters and statistics. In files of `save_portable`, which list the layers in order, names that differ are paired
    by structure, as `pair` does. The model keeps its dtypes and devices. After an error it is unchanged.

    λ and the step count of a `GRL` are settings: they are read where both the file and the model have them. Where only
    one has them they are ignored.

    Args:
        model: an `nn.Module` or an `nnx.Module`.
        path: the file.
        names: name in the file → the model's, for layers that cannot be paired automatically.
        flatten: as for `copy_weights`.

    Raises:
        TypeError: the model is neither.
        WeightsFileError: the file is missing, truncated or no safetensors file, or belongs to another model: a name is
            missing or unknown, a shape differs, a number is not finite or does not fit.
        PortError: the order of a flattened map is unknown, or a name in `names` is.

    Example:
        `load_portable(nnx_model, "model.safetensors")`
    """
    tree = grown(model)
    weights = {name: array for name, array in load_weights(path).items() if not name.endswith("num_batches_tracked")}
    written = file_tree(load_metadata(path), weights, fspath(path))
    weights = _with_present_settings(_renamed(weights, written, tree, names or {}), written, tree)
    weights = _with_optional_biases(weights, tree)
    expected: Weights = {}
    for leaf in tree.leaves():
        expected |= _named(leaf, leaf.canonical())
        if None in leaf.shapes.values():  # any shape will do
            expected |= {name: weights[name] for name in _named(leaf, leaf.shapes) if name in weights}
    check_weights(fspath(path), weights, expected)
    try:
        set_portable_weights(model, weights, flatten)
    except PortError as error:
        raise WeightsFileError(f"{fspath(path)}: {error}") from error


def portable_weights(model: Model, flatten: Mapping[str, Sequence[int]] | None = None) -> Weights:
    """Return the arrays that `save_portable` writes: name → array, in PyTorch's names and layouts.

    Args:
        model: an `nn.Module` or an `nnx.Module`.
        flatten: as for `copy_weights`.

    Raises:
        PortError: a layer has an array that PyTorch's layer of its kind lacks; the order of a map is unknown.
    """
    tree = grown(model)
    flattened = _flattened(model, tree, flatten)
    weights: Weights = {}
    for leaf in tree.leaves():
        if surplus := leaf.not_converted():
            raise PortError(f"{joined(leaf.path, min(surplus))}: PyTorch's {leaf.kind} has no such array.")
        arrays = read_all(leaf.slots)
        if tree.side == "nnx":
            arrays = in_torch_layout(leaf.rule, leaf.value, arrays, flattened.get(leaf.path))
        weights |= _named(leaf, arrays)
    return weights


def set_portable_weights(model: Model, weights: Weights, flatten: Mapping[str, Sequence[int]] | None = None) -> None:
    """Write weights with PyTorch's names and layouts into a model: all of them, or none.

    Args:
        model: an `nn.Module` or an `nnx.Module`. An abstract one (`nnx.eval_shape`) becomes a concrete one.
        weights: the return value of `portable_weights`.
        flatten: as for `copy_weights`.

    Raises:
        PortError: an array does not fit, or nnx has no place for it; the order of a map is unknown.
    """
    tree = grown(model)
    flattened = _flattened(model, tree, flatten)
    arrays: Weights = {}
    slots: dict[str, Slot] = {}
    for leaf in tree.leaves():
        within = {name: weights[joined(leaf.name, name)] for name in leaf.shapes}
        if tree.side == "nnx":
            try:
                within = in_nnx_layout(leaf.rule, leaf.value, within, flattened.get(leaf.path))
            except ValueError as error:
                raise PortError(f"{leaf.path}: {error}.") from error
        arrays |= {joined(leaf.path, name): array for name, array in within.items()}
        slots |= {joined(leaf.path, name): slot for name, slot in leaf.slots.items()}
    write_all(slots, arrays)


def _flattened(model: Model, tree: ModelNode, flatten: Mapping[str, Sequence[int]] | None) -> dict[str, int]:
    return find_flattened(model, flatten) if tree.side == "nnx" else {}  # type: ignore[arg-type]


def _named(leaf: Node, arrays: Mapping[str, T]) -> dict[str, T]:
    """Return a layer's arrays by their full PyTorch names."""
    return {joined(leaf.name, name): array for name, array in arrays.items()}


def _names_of(tree: Node) -> set[str]:
    return {name for leaf in tree.leaves() for name in _named(leaf, leaf.shapes)}


def _settings_of(leaves: Iterable[Node]) -> set[str]:
    return {joined(leaf.name, name) for leaf in leaves for name in leaf.settings}


def _renamed(weights: Weights, written: Node | None, tree: ModelNode, names: Mapping[str, str]) -> Weights:
    """Return the arrays of a file by the names of the model."""
    if written is None:
        new_names = dict(names)
    elif not names and weights.keys() == _names_of(tree):
        return weights
    else:
        matches = correspond(written, tree, names).matches
        new_names = {match.torch.name: match.nnx.name for match in matches if match.torch.is_leaf}
    return {_new_name(name, new_names): array for name, array in weights.items()}


def _new_name(name: str, new_names: Mapping[str, str]) -> str:
    """Return a name with its start replaced. The longest start counts."""
    for old in sorted(new_names, key=len, reverse=True):
        if name == old or name.startswith(f"{old}."):
            return new_names[old] + name.removeprefix(old)
    return name


def _with_present_settings(weights: Weights, written: Node | None, tree: ModelNode) -> Weights:
    """Return the arrays of a file with the settings that the model has. The file may lack some, or have others."""
    in_file = _settings_of(written.leaves()) if written is not None else set()
    in_model = _settings_of(tree.leaves())
    present = {name: array for name, array in weights.items() if name in in_model or name not in in_file}
    for leaf in tree.leaves():
        for name in leaf.settings:
            present.setdefault(joined(leaf.name, name), leaf.slots[name].read())
    return present


def _with_optional_biases(weights: Weights, tree: ModelNode) -> Weights:
    """Return the arrays of a file with a bias of 0 added or removed where the model and the file differ in it."""
    completed = dict(weights)
    for leaf in tree.leaves():
        if leaf.rule is None or not leaf.rule.optional:
            continue
        canonical = leaf.canonical()
        for name in leaf.rule.optional:
            full_name = joined(leaf.name, name)
            if name in canonical:
                completed.setdefault(full_name, canonical[name])
            elif full_name in completed and not completed[full_name].any():
                del completed[full_name]
    return completed
