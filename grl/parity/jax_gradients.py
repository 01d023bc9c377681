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
from numpy.typing import NDArray

from grl.jax_impl import function
from grl.parity.reversal import homes, replaced

__all__ = ["NAME", "epsilon", "gradients", "is_real_float", "names", "parts", "pull_back"]

NAME = "JAX"
Array = NDArray[Any]

# What is compiled already would not see the replacement: under another value of this, JAX traces everything anew.
_bypass = jax.make_user_context(0)
_bypasses = count(1)


def is_real_float(x: JaxArray) -> bool:
    """Whether an array holds real floats."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def epsilon(x: JaxArray) -> float:
    """The relative spacing of an array's floats."""
    return float(jnp.finfo(x.dtype).eps)  # type: ignore[no-untyped-call]  # untyped in jax 0.10


def pull_back(layer: Callable[[Any], Any], x: JaxArray, cotangents: Sequence[Array]) -> tuple[bool, list[Array]]:
    """Return whether layer(x) is x bit for bit, and the gradient of x for each cotangent, in float64.

    Args:
        layer: called once.
        x: an array of real floats.
        cotangents: each of x's shape.

    Raises:
        TypeError, ValueError: what the layer returns is no JAX array of x's shape.
    """
    linen = getattr(sys.modules.get("flax"), "linen", None)
    if linen is not None and isinstance(layer, linen.Module) and layer.scope is None:
        raise TypeError("layer: got a Linen module without variables; accepted is functools.partial(layer.apply, {}).")
    if _is_nnx(layer):
        nnx = sys.modules["flax.nnx"]
        graph, state = nnx.split(layer)
        y, pull = jax.vjp(lambda x: nnx.merge(graph, state, copy=True)(x), x)  # Variables of this trace, free to change
    else:
        y, pull = jax.vjp(layer, x)
    if not isinstance(y, JaxArray):
        raise TypeError(f"layer: returned a {type(y).__name__}; accepted is a JAX array.")
    if y.shape != x.shape:
        raise ValueError(f"layer: returned the shape {y.shape}; accepted is that of x, {x.shape}.")
    identity = y.dtype == x.dtype and np.asarray(y).tobytes() == np.asarray(x).tobytes()
    return identity, [_numpy(pull(jnp.asarray(cotangent, y.dtype))[0]) for cotangent in cotangents]


def parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield a module and all modules in it, with their names; a layer that is no nnx module alone."""
    if _is_nnx(model):
        for path, part in sys.modules["flax.nnx"].iter_modules(model):
            yield ".".join(map(str, path)), part
    else:
        yield "", model


def names(model: Any) -> list[str]:
    """The names of all parameters that take a gradient: `nnx.Param`s, or the arrays of floats in a pytree."""
    parameters, _ = _split(model)
    return list(parameters)


def gradients(
    loss: Callable[[Any, Any], Any],
    model: Any,
    batch: Any,
    wanted: Sequence[str],
    *,
    scales: Sequence[float] = (1.0,),
    bypass: bool = False,
    layer: Any = None,
) -> tuple[float, list[dict[str, Array]], int]:
    """Return a loss, its gradients by parameter, in float64, and how often the bypassed layer would have run.

    The model is left as it was: the loss is computed with a copy.

    Args:
        loss: a function of (model, batch) to a scalar.
        model: an nnx module, or a pytree of parameters.
        batch: what the loss takes.
        wanted: the names of the parameters.
        scales: what the loss is multiplied by before it is differentiated, one for each of the gradients.
        bypass: make the reversal an identity.
        layer: the layer to bypass, if it is not one of grl's: a name or object of a submodule, a class, or a function.
    """
    runs: list[None] = []
    known, join = _split(model)
    places = _places(model, layer) if bypass and layer is not None and not _is_function(layer) else []

    def scaled(chosen: dict[str, JaxArray], scale: JaxArray) -> tuple[JaxArray, JaxArray]:
        copy = join({**known, **chosen})
        with _bypassed(copy, layer, places, runs) if bypass else nullcontext():
            value = loss(copy, batch)
        return value * scale.astype(value.dtype), value

    chosen = {name: known[name] for name in wanted}
    # It runs once or twice, so that a quick compilation is worth more than a quick program.
    compiled = jax.jit(jax.grad(scaled, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    with _bypassed_rule(layer, runs) if bypass else nullcontext():
        found = [compiled(chosen, jnp.float32(scale)) for scale in scales]
    arrays = [{name: _numpy(array) for name, array in gradient.items()} for gradient, _ in found]
    return float(found[0][1]), arrays, len(runs)


@contextmanager
def _bypassed_rule(layer: Any, runs: list[None]) -> Iterator[None]:
    def identity(*arguments: Any, **named: Any) -> Any:
        runs.append(None)
        return [*arguments, *named.values()][0]

    with ExitStack() as stack:
        stack.enter_context(_bypass(next(_bypasses)))
        if layer is None:
            stack.enter_context(replaced(function, "_scale", identity))  # both directions of all of grl's forms
        elif _is_function(layer):
            for module, name in homes(layer):
                stack.enter_context(replaced(module, name, identity))
        yield


def _is_function(layer: Any) -> bool:
    return callable(layer) and not isinstance(layer, type) and not _is_nnx(layer)


@contextmanager
def _bypassed(model: Any, layer: Any, places: list[str], runs: list[None]) -> Iterator[None]:
    """Make foreign layers an identity. Python looks `__call__` up in the class, so it is there that it changes."""
    chosen = [part for name, part in parts(model) if name in places] if places else []
    with ExitStack() as stack:
        for kind in {type(part) for part in chosen} or ({layer} if isinstance(layer, type) else set()):

            def call(self: Any, x: Any, *arguments: Any, _usual: Any = kind.__call__, **named: Any) -> Any:
                if chosen and not any(self is part for part in chosen):
                    return _usual(self, x, *arguments, **named)
                runs.append(None)
                return x

            stack.enter_context(replaced(kind, "__call__", call))
        yield


def _places(model: Any, layer: Any) -> list[str]:
    places = [
        name
        for name, part in parts(model)
        if name and (part is layer or name == layer or (isinstance(layer, type) and isinstance(part, layer)))
    ]
    if not places and not isinstance(layer, type):
        raise ValueError(f"layer: got {layer!r}; accepted is a submodule of the model, its name, or its class.")
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


def _numpy(array: JaxArray) -> Array:
    return np.asarray(array).astype(np.float64)
