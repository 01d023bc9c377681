"""The metadata of a portable file: the layers in their order, which allows the names of two models to differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from grl.arrays import Weights
from grl.weights.rules import rule_of_kind
from grl.weights.tree import PARAMETER, Node, Shapes, joined
from grl.weights_file import WeightsFileError

__all__ = ["described", "file_tree"]

_VERSION = "1"


def described(tree: Node) -> dict[str, str]:
    """Return the metadata for a model's file: the format's version, the layers, and whether their order is lost."""
    layers = [[leaf.name, leaf.kind, list(leaf.shapes)] for leaf in tree.leaves()]
    return {"grl_portable": _VERSION, "layers": json.dumps(layers), "sorted": json.dumps(tree.is_sorted)}


def file_tree(metadata: Mapping[str, str], weights: Weights, path: str) -> Node | None:
    """Return the tree of the model that wrote a file; None if the file has no such metadata.

    Args:
        metadata: the file's metadata.
        weights: the file's arrays by name.
        path: the file's path, for error messages.

    Raises:
        WeightsFileError: the format is newer, or the metadata contradicts the arrays.
    """
    if "grl_portable" not in metadata:
        return None
    if metadata["grl_portable"] != _VERSION:
        version = metadata["grl_portable"]
        raise WeightsFileError(f"{path}: of version {version!r} of the portable format; expected {_VERSION}.")
    try:
        leaves = []
        for name, kind, arrays in json.loads(metadata["layers"]):
            shapes = {array: weights[joined(name, array)].shape for array in arrays}
            leaves.append(_FileNode(name, name, kind, rule_of_kind(kind), (), shapes))
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise WeightsFileError(f"{path}: its list of layers does not match its arrays.") from error
    root = _gathered("", leaves)
    root.sorted = metadata.get("sorted") == "true"
    return root


@dataclass(eq=False)
class _FileNode(Node):
    """A part of the model that wrote the file."""

    written: Shapes = field(default_factory=dict)
    sorted: bool = False

    @property
    def origin(self) -> str:
        return "file"

    @property
    def shapes(self) -> Shapes:
        return self.written

    @property
    def is_sorted(self) -> bool:
        return self.sorted

    def tensors(self) -> Iterator[_FileNode]:
        if self.kind != PARAMETER:
            for name, shape in self.written.items():
                full_name = joined(self.name, name)
                yield _FileNode(full_name, full_name, PARAMETER, None, (), {"": shape})


def _gathered(above: str, leaves: list[_FileNode]) -> _FileNode:
    """Return the module of this name, with the leaves below it grouped by their names."""
    if len(leaves) == 1 and leaves[0].name == above:
        return leaves[0]
    groups: dict[str, list[_FileNode]] = {}
    for leaf in leaves:
        if leaf.name != above:
            rest = leaf.name[len(above) + 1 :] if above else leaf.name
            groups.setdefault(joined(above, rest.partition(".")[0]), []).append(leaf)
    children = tuple(_gathered(name, group) for name, group in groups.items())
    return _FileNode(above, above, "", None, children)
