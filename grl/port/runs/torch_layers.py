"""The calls of a PyTorch model's layers while it runs, and what its graph is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from grl.port.runs.recording import Array, Key, Recording

__all__ = ["ReachedError", "count_reversals", "entered", "floats", "leaves", "recording", "to_numpy"]


class ReachedError(Exception):
    """The layer whose activation is asked for has run; the rest of the model need not."""


@contextmanager
def recording(model: nn.Module, names: Sequence[str], seen: Recording, until: Key | None = None) -> Iterator[None]:
    """Record what layers return; up to a call, if there is one to end at."""

    def hook(name: str) -> Any:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            key = seen.record(name, floats(output))
            if key == until:
                raise ReachedError

        return record

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in dict.fromkeys(names) if name in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entered(model: nn.Module, inside: list[str]) -> Iterator[None]:
    """Keep the names of the modules that are running, outermost first."""

    def leave(*_: Any) -> None:
        inside.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _, __, name=name: inside.append(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def floats(output: Any) -> list[Array]:
    """Return the arrays of floats in a pytree, by calls that are not to be counted as the model's."""
    with torch._C.DisableTorchFunction():
        found = [leaf for leaf in leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return [to_numpy(leaf, copied=True) for leaf in found]


def leaves(output: Any) -> list[Any]:
    """Return the leaves of a pytree in JAX's order, in which a dict goes by its keys."""
    if type(output) is dict:
        try:
            return [leaf for key in sorted(output) for leaf in leaves(output[key])]
        except TypeError:  # keys without an order; JAX does not take them
            return tree_leaves(output)
    if isinstance(output, list | tuple):
        return [leaf for part in output for leaf in leaves(part)]
    return tree_leaves(output)


def count_reversals(node: Any) -> int:
    """How many of a graph's nodes are `torch.autograd.Function`s, which is what a reversal is made of."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return sum(isinstance(node, BackwardCFunction) for node in seen)


def to_numpy(tensor: Tensor, copied: bool = False) -> Array:
    """Return a tensor as NumPy has it; copied where what comes later may change it in place."""
    array = tensor.detach().cpu()
    if array.layout != torch.strided:
        array = array.to_dense()  # the gradient of a sparse embedding
    if array.dtype in (torch.bfloat16, torch.float16):
        return array.float().numpy()
    found: Array = array.numpy()
    return found.copy() if copied else found
