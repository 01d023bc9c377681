"""What a portable file says of its model besides the numbers: the layers in their order, so that names may differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grl.arrays import Weights
from grl.weights.rules import rule_of_kind
from grl.weights.tree import Node, joined
from grl.weights_file import CheckpointError

__all__ = ["described", "file_tree"]

_VERSION = "1"


def described(tree: Node) -> dict[str, str]:
    """Return the metadata of a file: the format's version, the layers, and whether their order is lost."""
    layers = [[leaf.name, leaf.kind, list(leaf.shapes)] for leaf in tree.leaves()]
    return {"grl_portable": _VERSION, "layers": json.dumps(layers), "sorted": json.dumps(tree.is_sorted)}


def file_tree(metadata: Mapping[str, str], weights: Weights, path: str) -> Node | None:
    """Return the tree of the model that a file is of; None if the file does not say.

    Args:
        metadata: of the file.
        weights: name → array.
        path: of the file, for messages.

    Raises:
        CheckpointError: a newer version has written it, or what it says is not what it holds.
    """
    if "grl_portable" not in metadata:
        return None
    if metadata["grl_portable"] != _VERSION:
        version = metadata["grl_portable"]
        raise CheckpointError(f"{path}: of version {version!r} of the portable format; expected {_VERSION}.")
    try:
        leaves = []
        for name, kind, parts in json.loads(metadata["layers"]):
            shapes = {part: weights[joined(name, part)].shape for part in parts}
            leaves.append(_Written("file", name, name, None, rule_of_kind(kind), (), kind, shapes))
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its list of layers is not that of its arrays.") from error
    root = _gathered("", leaves)
    root.__dict__["is_sorted"] = metadata.get("sorted") == "true"
    return root


@dataclass(eq=False)
class _Written(Node):
    """A part of the model that a file is of."""

    written_kind: str = ""
    written_shapes: Any = None

    def __post_init__(self) -> None:
        self.__dict__ |= {"kind": self.written_kind, "shapes": self.written_shapes or {}}  # what a Node finds out


def _gathered(above: str, leaves: list[_Written]) -> _Written:
    """Parts under their modules, as their names say."""
    if len(leaves) == 1 and leaves[0].name == above:
        return leaves[0]
    groups: dict[str, list[_Written]] = {}
    for leaf in leaves:
        if leaf.name != above:
            rest = leaf.name[len(above) + 1 :] if above else leaf.name
            groups.setdefault(joined(above, rest.partition(".")[0]), []).append(leaf)
    children = tuple(_gathered(name, group) for name, group in groups.items())
    return _Written("file", above, above, None, None, children)
