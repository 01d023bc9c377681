"""The calls of an nnx model's layers while it is traced, and the reversals in a traced program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import tracers
from jax.extend.core import Jaxpr, jaxprs_in_params

from grl.port.runs.recording import Dropout, Key, next_call
from grl.substitution import replaced, taking_turns

__all__ = ["Trace", "count_reversals", "floats", "recording"]

Call: TypeAlias = Callable[..., Any]
"""The `__call__` of a layer's class."""


_SWITCH: ContextVar[_Switch | None] = ContextVar("_SWITCH", default=None)
"""The one that this thread's dropouts ask; a scan makes other objects of them, so that their `id` says nothing."""


@dataclass
class Trace:
    """What a traced forward pass leaves behind.

    Args:
        activations: by call, in the order in which the calls ended: what stands for the arrays of its result.
        dropouts: the active ones, in the order of their calls.
    """

    activations: dict[Key, list[jax.Array]] = field(default_factory=dict)
    dropouts: list[Dropout] = field(default_factory=list)


@contextmanager
def recording(model: nnx.Module, names: Sequence[str], trace: Trace, without_dropout: bool) -> Iterator[None]:
    """Record what the layers of a model return, and switch off its dropouts if asked to.

    Python looks `__call__` up in the class, so it is replaced in the class, for the whole process. Layers of other
    models, and those that another thread runs, keep their behaviour. Two threads take turns.
    """
    layers = {".".join(map(str, path)): layer for path, layer in nnx.iter_modules(model)}
    recorder = _Recorder({id(layers[name]): name for name in names if name in layers}, trace)
    switch = _Switch(trace, without_dropout)
    wrapped: list[tuple[Callable[[Call], Call], list[nnx.Module]]] = [
        (switch.attention, [layer for layer in layers.values() if isinstance(layer, nnx.MultiHeadAttention)]),
        (switch.dropout, [layer for layer in layers.values() if isinstance(layer, nnx.Dropout)]),
        (recorder.recorded, [layer for layer in layers.values() if id(layer) in recorder.watched]),
    ]
    with taking_turns(), ExitStack() as stack:
        for wrap, chosen in wrapped:
            for kind in {type(layer) for layer in chosen}:
                usual: Call = kind.__call__
                stack.enter_context(replaced(kind, "__call__", wrap(usual)))
        token = _SWITCH.set(switch)
        try:
            yield
        finally:
            _SWITCH.reset(token)


class _Recorder:
    """Records what layers return.

    Args:
        watched: their names by `id`.
        trace: where to.
    """

    def __init__(self, watched: dict[int, str], trace: Trace) -> None:
        self.watched, self.trace = watched, trace
        self._outside = tracers.current_jax_trace()
        self._running: set[int] = set()

    def recorded(self, usual: Call) -> Call:
        def call(layer: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            if id(layer) not in self.watched or id(layer) in self._running:
                return usual(layer, *args, **kwargs)
            self._running.add(id(layer))
            try:
                output = usual(layer, *args, **kwargs)
            finally:
                self._running.remove(id(layer))
            if tracers.current_jax_trace() == self._outside:  # the arrays of a scan or a checkpoint are not available
                key = next_call(self.watched[id(layer)], self.trace.activations)
                self.trace.activations[key] = floats(output)
            return output

        return call


class _Switch:
    """Records the active dropouts of this thread, and switches them off if asked to.

    Args:
        trace: where to record.
        off: whether to switch them off.
    """

    def __init__(self, trace: Trace, off: bool) -> None:
        self.trace, self.off = trace, off

    def dropout(self, usual: Call) -> Call:
        def call(layer: nnx.Dropout, inputs: Any, *, deterministic: bool | None = None, **kwargs: Any) -> Any:
            is_off = layer.deterministic if deterministic is None else deterministic
            if _SWITCH.get() is self and layer.rate and not is_off:
                dropout = Dropout(float(layer.rate), tuple(inputs.shape), bool(layer.broadcast_dims))
                self.trace.dropouts.append(dropout)
                if self.off:
                    return inputs
            return usual(layer, inputs, deterministic=deterministic, **kwargs)

        return call

    def attention(self, usual: Call) -> Call:
        def call(layer: nnx.MultiHeadAttention, *args: Any, deterministic: bool | None = None, **kwargs: Any) -> Any:
            is_off = layer.deterministic if deterministic is None else deterministic
            if _SWITCH.get() is self and layer.dropout_rate and not is_off:
                self.trace.dropouts.append(Dropout(float(layer.dropout_rate)))
                deterministic = deterministic or self.off
            return usual(layer, *args, deterministic=deterministic, **kwargs)

        return call


def floats(output: object) -> list[jax.Array]:
    """Return the floating-point arrays of a pytree."""
    leaves = jax.tree.leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)]


def count_reversals(jaxpr: Jaxpr) -> int:
    """Return how many `custom_vjp`s of a program have their argument as value, as a reversal has."""
    count = 0
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        if equation.primitive.name.startswith("custom_vjp") and all(_computes_nothing(one) for one in inner):
            count += 1
        else:
            count += sum(count_reversals(one) for one in inner)
    return count


def _computes_nothing(jaxpr: Jaxpr) -> bool:
    inner = [list(jaxprs_in_params(equation.params)) for equation in jaxpr.eqns]
    return all(jaxprs and all(_computes_nothing(one) for one in jaxprs) for jaxprs in inner)
