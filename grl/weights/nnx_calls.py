"""Watch the calls of an nnx model's layers without touching their classes.

Python looks `__call__` up in the class, so the watched objects get a subclass of their class for the time of a block.
Other objects of the same classes, and other threads, are not affected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

from flax import nnx

from grl.weights.half import Part

__all__ = ["Around", "watching_calls"]

Around: TypeAlias = Callable[..., Part]
"""`around(layer, usual, *args, **kwargs)` returns the result of a call. `usual(*args, **kwargs)` is the layer's own."""

_around: ContextVar[Around | None] = ContextVar("grl_around", default=None)


@contextmanager
def watching_calls(layers: Iterable[nnx.Module], around: Around) -> Iterator[None]:
    """Let the calls of some layers go through `around` for the time of the block, in this thread.

    Args:
        layers: modules that no other thread uses. Copies that `nnx.jit` or a scan makes of them count as well.
        around: called with the layer, its usual `__call__` and the arguments.
    """
    usual_classes = [(layer, type(layer)) for layer in layers]
    token = _around.set(around)
    try:
        for layer, usual in usual_classes:
            layer.__class__ = _watched(usual)
        yield
    finally:
        for layer, usual in usual_classes:
            layer.__class__ = usual
        _around.reset(token)


@functools.cache  # JAX registers every nnx class for ever, so each gets one subclass
def _watched(usual: type[nnx.Module]) -> type[nnx.Module]:
    def call(self: Part, *args: Part, **kwargs: Part) -> Part:
        own_call = functools.partial(usual.__call__, self)
        around = _around.get()
        return own_call(*args, **kwargs) if around is None else around(self, own_call, *args, **kwargs)

    names = {name: getattr(usual, name) for name in ("__module__", "__qualname__", "__doc__")}
    metaclass: Part = type(usual)
    watched: type[nnx.Module] = metaclass(usual.__name__, (usual,), {"__call__": call, **names})
    return watched
