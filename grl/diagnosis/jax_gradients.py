"""The JAX half of the diagnosis: gradients as NumPy arrays, with a reversal layer and with it bypassed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array as JaxArray

from grl.arrays import Array
from grl.jax_impl import function
from grl.substitution import homes, replaced

__all__ = ["NAME", "finfo", "gradients", "is_function", "is_real_float", "names", "numbers", "parts", "pull_back"]

NAME = "JAX"

# What is compiled already would not see the replacement: under another value of this, JAX traces everything anew.
_bypass = jax.make_user_context(0)
_bypasses = count(1)


def is_real_float(x: JaxArray) -> bool:
    """Whether an array holds real floats."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def finfo(x: JaxArray) -> Any:
    """The spacing and the range of an array's floats: `eps`, `tiny`, `max`."""
    return jnp.finfo(x.dtype)  # type: ignore[no-untyped-call]  # untyped in jax 0.10


def pull_back(layer: Callable[[Any], Any], x: JaxArray) -> tuple[bool, Callable[[Array], Array]]:
    """Return whether layer(x) is x bit for bit, and the function from a cotangent to x's gradient, in float64.

    Args:
        layer: called once.
        x: an array of real floats.

    Raises:
        TypeError, ValueError: what the layer returns is no JAX array of x's shape.
    """
    linen = getattr(sys.modules.get("flax"), "linen", None)
    if linen is not None and isinstance(layer, linen.Module) and layer.scope is None:
        raise TypeError("layer: got a Linen module without variables; expected functools.partial(layer.apply, {}).")
    if _is_nnx(layer):
        nnx = sys.modules["flax.nnx"]
        graph, state = nnx.split(layer)
        y, pull = jax.vjp(lambda x: nnx.merge(graph, state, copy=True)(x), x)  # Variables of this trace, free to change
    else:
        y, pull = jax.vjp(layer, x)
    if not isinstance(y, JaxArray):
        raise TypeError(f"layer: returned a {type(y).__name__}; expected a JAX array.")
    if y.shape != x.shape:
        raise ValueError(f"layer: returned the shape {y.shape}; expected that of x, {x.shape}.")
    identity = y.dtype == x.dtype and np.asarray(y).tobytes() == np.asarray(x).tobytes()
    return identity, lambda cotangent: numbers(pull(jnp.asarray(cotangent, y.dtype))[0])


def parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield a module and all modules in it, with their names; a layer that is no nnx module alone."""
    if _is_nnx(model):
        for path, part in sys.modules["flax.nnx"].iter_modules(model):
            yield ".".join(map(str, path)), part
    else:
        yield "", model


def names(model: Any, frozen: bool = False) -> list[str]:
    """The names of all parameters that take a gradient: `nnx.Param`s, or the arrays of floats in a pytree."""
    parameters, _ = _split(model)  # none of which is frozen
    return [] if frozen else list(parameters)


def gradients(
    loss: Callable[[Any, Any], Any],
    model: Any,
    batch: Any,
    wanted: Sequence[str],
    *,
    scales: Sequence[float] = (1.0,),
    factor: float | None = None,
    layer: Any = None,
    before: Any = None,
) -> tuple[float, list[dict[str, Array]], int]:
    """Return a loss, its gradients by parameter, in float64, and how often the bypassed layer would have run.

    The model is left as it was: the loss is computed with a copy. What a loss changes outside of JAX (NumPy's random
    numbers, a Python number that it counts) is not undone.

    Args:
        loss: a function of (model, batch) to a scalar.
        model: an nnx module, or a pytree of parameters.
        batch: what the loss takes.
        wanted: the names of the parameters.
        scales: what the loss is multiplied by before it is differentiated, one for each of the gradients.
        factor: what the reversal is made: 1, an identity; 0, a layer that lets no gradient through; None, what it is.
        layer: the layer, if it is not one of grl's: a name or object of a submodule, a class, or a function.
        before: what came with the layer as it is: it is returned if the layer does not run, and nothing is compiled.

    Raises:
        ValueError: there is no such layer.
    """
    runs: list[None] = []
    known, join = _split(model)
    places = _places(model, layer) if factor is not None and layer is not None and not is_function(layer) else []

    def scaled(chosen: dict[str, JaxArray], scale: JaxArray) -> tuple[JaxArray, JaxArray]:
        copy = join({**known, **chosen})
        with nullcontext() if factor is None else _replaced_parts(copy, layer, places, factor, runs):
            value = loss(copy, batch)
        return value * scale.astype(value.dtype), value

    chosen = {name: known[name] for name in wanted}
    # It runs once or twice, so that a quick compilation is worth more than a quick program.
    compiled = jax.jit(jax.grad(scaled, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    with nullcontext() if factor is None else _replaced_rule(layer, factor, runs):
        jax.eval_shape(compiled, chosen, jnp.float32(1.0))  # traces it, and no more
        if before is not None and not runs:
            return before  # type: ignore[no-any-return]
        found = [compiled(chosen, jnp.float32(scale)) for scale in scales]
    arrays = [{name: numbers(array) for name, array in gradient.items()} for gradient, _ in found]
    return float(found[0][1]), arrays, len(runs)


@contextmanager
def _replaced_rule(layer: Any, factor: float, runs: list[None]) -> Iterator[None]:
    def forward(*arguments: Any, **named: Any) -> Any:
        runs.append(None)
        x = [*arguments, *named.values()][0]
        return x if factor else jax.lax.stop_gradient(x)

    def scale(cotangent: JaxArray, *_: Any) -> JaxArray:
        runs.append(None)
        return cotangent if factor else jnp.zeros_like(cotangent)

    with ExitStack() as stack:
        stack.enter_context(_bypass(next(_bypasses)))
        if layer is None:
            stack.enter_context(replaced(function, "_scale", scale))  # both directions of all of grl's forms
        elif is_function(layer):
            for module, name in homes(layer):
                stack.enter_context(replaced(module, name, forward))
        yield


def is_function(layer: Any) -> bool:
    """Whether a layer is a function, to be found where it is a global."""
    return callable(layer) and not isinstance(layer, type) and not _is_nnx(layer)


@contextmanager
def _replaced_parts(model: Any, layer: Any, places: list[str], factor: float, runs: list[None]) -> Iterator[None]:
    """Replace foreign layers. Python looks `__call__` up in the class, so it is there that it changes."""
    chosen = [part for name, part in parts(model) if name in places] if places else []
    with ExitStack() as stack:
        for kind in {type(part) for part in chosen} or ({layer} if isinstance(layer, type) else set()):

            def call(self: Any, x: Any, *arguments: Any, _usual: Any = kind.__call__, **named: Any) -> Any:
                if chosen and not any(self is part for part in chosen):
                    return _usual(self, x, *arguments, **named)
                runs.append(None)
                return x if factor else jax.lax.stop_gradient(x)

            stack.enter_context(replaced(kind, "__call__", call))
        yield


def _places(model: Any, layer: Any) -> list[str]:
    places = [
        name
        for name, part in parts(model)
        if name and (part is layer or name == layer or (isinstance(layer, type) and isinstance(part, layer)))
    ]
    if not places and not isinstance(layer, type):
        raise ValueError(f"layer: got {layer!r}; expected a submodule of the model, its name, or its class.")
    return places


def _split(model: Any) -> tuple[dict[str, JaxArray], Callable[[dict[str, JaxArray]], Any]]:
    """Return the parameters by name, and what puts them back into a copy of the model."""
    rest: tuple[Any, ...] = ()
    tree, merge = model, None
    if _is_nnx(model):
        nnx = sys.modules["flax.nnx"]
        graph, tree, *rest_of = nnx.split(model, nnx.Param, ...)
        rest, merge = tuple(rest_of), lambda tree: nnx.merge(graph, tree, *rest, copy=True)
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = [(_name(path), leaf) for path, leaf in leaves]

    def join(parameters: dict[str, JaxArray]) -> Any:
        tree = jax.tree_util.tree_unflatten(structure, [parameters.get(name, leaf) for name, leaf in named])
        return tree if merge is None else merge(tree)

    return {name: leaf for name, leaf in named if isinstance(leaf, JaxArray) and is_real_float(leaf)}, join


def _name(path: Any) -> str:
    keys = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path]
    if isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":  # the inside of an nnx Variable
        keys.pop()
    return ".".join(map(str, keys))


def _is_nnx(model: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def numbers(array: JaxArray) -> Array:
    """An array's values, in float64."""
    return np.asarray(array).astype(np.float64)
