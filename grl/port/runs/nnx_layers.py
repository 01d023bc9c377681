"""The calls of an nnx model's layers while it runs or is traced, and what a traced program is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import tracers
from jax.extend.core import jaxprs_in_params

from grl.port.runs.recording import Dropout, Recording
from grl.substitution import replaced

__all__ = ["count_reversals", "floats", "recording"]


@contextmanager
def recording(model: nnx.Module, names: Sequence[str], seen: Recording, without_dropout: bool) -> Iterator[None]:
    """Record what layers return. Python looks `__call__` up in the class, so it is there that it changes."""
    parts = {".".join(map(str, path)): part for path, part in nnx.iter_modules(model)}
    watched = {id(parts[name]): name for name in names if name in parts}
    kinds: set[Any] = {type(part) for part in parts.values() if id(part) in watched}
    dropouts: set[Any] = {type(part) for part in parts.values() if isinstance(part, nnx.Dropout)}
    attentions: set[Any] = {type(part) for part in parts.values() if isinstance(part, nnx.MultiHeadAttention)}
    outside = tracers.current_jax_trace()
    running: set[int] = set()

    def wrapped(usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if id(self) not in watched or id(self) in running:
                return usual(self, *args, **kwargs)
            running.add(id(self))
            try:
                output = usual(self, *args, **kwargs)
            finally:
                running.remove(id(self))
            if tracers.current_jax_trace() == outside:  # within a scan, a checkpoint … the arrays are not to be had
                seen.record(watched[id(self)], floats(output))
            return output

        return call

    def dropout(usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, inputs: Any, *, deterministic: bool | None = None, **kwargs: Any) -> Any:
            off = self.deterministic if deterministic is None else deterministic
            if self.rate and not off:
                seen.dropouts.append(Dropout(float(self.rate), tuple(inputs.shape), bool(self.broadcast_dims)))
                if without_dropout:
                    return inputs
            return usual(self, inputs, deterministic=deterministic, **kwargs)

        return call

    def attention(usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, deterministic: bool | None = None, **kwargs: Any) -> Any:
            off = self.deterministic if deterministic is None else deterministic
            if self.dropout_rate and not off:
                seen.dropouts.append(Dropout(float(self.dropout_rate)))
                deterministic = deterministic or without_dropout
            return usual(self, *args, deterministic=deterministic, **kwargs)

        return call

    with ExitStack() as stack:
        for wrapper, chosen in ((attention, attentions), (dropout, dropouts), (wrapped, kinds)):
            for kind in chosen:
                stack.enter_context(replaced(kind, "__call__", wrapper(kind.__call__)))
        yield


def floats(output: Any) -> list[Any]:
    """Return the arrays of floats in a pytree."""
    leaves = jax.tree.leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)]


def count_reversals(jaxpr: Any) -> int:
    """How many `custom_vjp`s a program holds whose value is their argument, which is what a reversal is."""
    count = 0
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        if equation.primitive.name.startswith("custom_vjp") and all(_computes_nothing(one) for one in inner):
            count += 1
        else:
            count += sum(count_reversals(one) for one in inner)
    return count


def _computes_nothing(jaxpr: Any) -> bool:
    inner = [list(jaxprs_in_params(equation.params)) for equation in jaxpr.eqns]
    return all(jaxprs and all(_computes_nothing(one) for one in jaxprs) for jaxprs in inner)
