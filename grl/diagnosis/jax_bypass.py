"""Bypass a reversal in JAX for the calls of one context: grl's layers, or any layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard

import jax

from grl.bypass import Bypass
from grl.diagnosis.jax_parts import is_nnx, parts
from grl.jax_impl._internals import user_context
from grl.jax_impl.bypass import bypassed
from grl.substitution import Local, homes, local_calls, replaced

__all__ = ["is_function", "layer_bypassed_in", "names_of_layer", "reversal_bypassed"]

# A part of the key of JAX's caches: what is compiled already is traced anew, and sees the replacement.
_bypass = user_context(None)


@contextmanager
def reversal_bypassed(layer: object, factor: float) -> Iterator[Bypass]:
    """Give the gradient a factor in place of what a reversal makes of it, for the time of the block.

    Other threads keep their gradients, and so does what they compile meanwhile.

    Args:
        layer: a function; None: grl's reversals. A layer of another kind is bypassed by `layer_bypassed_in`.
        factor: 1: an identity in place of the reversal; 0: a layer that lets no gradient through.

    Raises:
        ValueError: there is no such function.
    """
    with ExitStack() as stack:
        if layer is None:
            yield stack.enter_context(bypassed(factor))
            return
        bypass = Bypass(factor)
        stack.enter_context(_bypass(bypass))
        if is_function(layer):
            local = stack.enter_context(local_calls())

            def call(*arguments: object, **named: object) -> object:
                return _passed_on(bypass, arguments, named)

            for module, name in homes(layer):
                stack.enter_context(replaced(module, name, local(call, layer)))
        yield bypass


@contextmanager
def layer_bypassed_in(model: object, layer: object, names: list[str], bypass: Bypass) -> Iterator[None]:
    """Bypass a submodule or a class for the calls of this context, for the time of the block.

    Python looks `__call__` up in the class, so it is replaced there.

    Args:
        model: the model that is called.
        layer: what the user gave.
        names: the names of the modules that the layer stands for; none: a class that is used without being a part.
        bypass: counts the calls.
    """
    chosen = [part for name, part in parts(model) if name in names] if names else []
    kinds: set[type] = {type(part) for part in chosen} or ({layer} if isinstance(layer, type) else set())
    with ExitStack() as stack:
        local = stack.enter_context(local_calls())
        for kind in kinds:
            stack.enter_context(replaced(kind, "__call__", _local_call(kind.__call__, chosen, bypass, local)))
        yield


def _local_call(original: Callable[..., Any], chosen: list[object], bypass: Bypass, local: Local) -> Any:
    def call(self: object, *arguments: object, **named: object) -> object:
        if chosen and not any(self is part for part in chosen):
            return original(self, *arguments, **named)
        return _passed_on(bypass, arguments, named)

    return local(call, original)


def _passed_on(bypass: Bypass, arguments: tuple[object, ...], named: Mapping[str, object]) -> object:
    """Return the first argument of a layer's call, with the gradient or without."""
    bypass.runs += 1
    x = arguments[0] if arguments else next(iter(named.values()))
    return x if bypass.factor else jax.lax.stop_gradient(x)


def is_function(layer: object) -> TypeGuard[Callable[..., object]]:
    """Return whether a layer is a function, which is found where it is a global."""
    return callable(layer) and not isinstance(layer, type) and not is_nnx(layer)


def names_of_layer(model: object, layer: object) -> list[str]:
    """Return the names of the modules that a layer stands for: itself, or those of its class.

    Raises:
        ValueError: there is none.
    """
    names = [
        name
        for name, part in parts(model)
        if name and (part is layer or name == layer or (isinstance(layer, type) and isinstance(part, layer)))
    ]
    if not names and not isinstance(layer, type):
        raise ValueError(f"layer: got {layer!r}; expected a submodule of the model, its name, or its class.")
    return names
