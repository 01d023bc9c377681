"""The calls of a PyTorch model's layers while it runs, and the nodes of its graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torch.autograd.function import BackwardCFunction

from grl.port.runs.recording import Key, Recording
from grl.port.runs.torch_arrays import floats

if TYPE_CHECKING:
    from torch.autograd.graph import Node

__all__ = ["ReachedError", "count_reversals", "entered", "recording"]


class ReachedError(Exception):
    """The layer whose activation is wanted has run; the rest of the model need not."""


@contextmanager
def recording(model: nn.Module, names: Sequence[str], seen: Recording, until: Key | None = None) -> Iterator[None]:
    """Record what layers return; raise `ReachedError` after the call `until`."""

    def record(name: str, _: nn.Module, __: object, output: object) -> None:
        key = seen.record(name, floats(output))
        if key == until:
            raise ReachedError

    modules = dict(model.named_modules())
    watched = [name for name in dict.fromkeys(names) if name in modules]
    handles = [modules[name].register_forward_hook(partial(record, name)) for name in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entered(model: nn.Module, inside: list[str]) -> Iterator[None]:
    """Keep the names of the modules that are running, outermost first."""

    def enter(name: str, *_: object) -> None:
        inside.append(name)

    def leave(*_: object) -> None:
        inside.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def count_reversals(root: Node | None) -> int:
    """Return how many nodes of a graph are `torch.autograd.Function`s, of which a reversal is made."""
    seen: set[Node] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return sum(isinstance(node, BackwardCFunction) for node in seen)
