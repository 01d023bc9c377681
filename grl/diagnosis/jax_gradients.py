"""The JAX half of the diagnosis: gradients as NumPy arrays, with a reversal layer and with it bypassed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array as JaxArray

from grl.arrays import Array
from grl.bypass import Bypass
from grl.diagnosis.jax_bypass import is_function, layer_bypassed_in, names_of_layer, reversal_bypassed
from grl.diagnosis.jax_parts import is_nnx, is_real_float, parts, split
from grl.diagnosis.records import Case, FloatLimits, Loss, LossGradients, Pullback

__all__ = [
    "NAME",
    "gradients",
    "is_function",
    "is_real_float",
    "limits",
    "names",
    "numbers",
    "parts",
    "passes_reversal",
    "pull_back",
]

NAME = "JAX"


def gradients(loss: Loss, case: Case, scales: Sequence[float] = (1.0,), factor: float | None = None) -> LossGradients:
    """Return a loss and its gradients, with the reversal bypassed by a factor or as it is.

    The model is left as it was, because the loss is computed with a copy. Changes that a loss makes outside of JAX
    (NumPy's random numbers, a Python number that it counts) stay.

    Args:
        loss: a function of (model, batch) to a scalar.
        case: the model, the batch, the wanted parameters and the layer.
        scales: the loss is multiplied by each of them before it is differentiated.
        factor: 1: an identity in place of the reversal; 0: a layer that lets no gradient through; None: the reversal.

    Raises:
        ValueError: there is no such layer.
    """
    with _bypassing(case, factor) as bypass:
        compiled, chosen = _differentiated(loss, case, bypass)
        by_scale = [compiled(chosen, jnp.float32(scale)) for scale in scales]
    arrays = tuple({name: numbers(array) for name, array in gradient.items()} for gradient, _ in by_scale)
    _, value = by_scale[0]
    return LossGradients(float(value), arrays, 0 if bypass is None else bypass.runs)


def passes_reversal(loss: Loss, case: Case) -> bool:
    """Return whether a loss's gradient passes the reversal. It is traced, and nothing is compiled.

    Args:
        loss: a function of (model, batch) to a scalar.
        case: the model, the batch, the parameters and the layer.
    """
    with _bypassing(case, 1.0) as bypass:
        compiled, chosen = _differentiated(loss, case, bypass)
        jax.eval_shape(compiled, chosen, jnp.float32(1.0))
    return bypass is not None and bypass.runs > 0


def limits(x: JaxArray) -> FloatLimits:
    """Return the spacing and the range of an array's floats."""
    found: FloatLimits = jnp.finfo(x.dtype)  # type: ignore[no-untyped-call]  # untyped in jax 0.10
    return found


def numbers(array: JaxArray) -> Array:
    """Return an array's values, in float64."""
    return np.asarray(array).astype(np.float64)


def pull_back(layer: Callable[[Any], Any], x: JaxArray) -> Pullback:
    """Call a layer once and return its derivative.

    Args:
        layer: a function of one array, or an `nnx.Module`.
        x: an array of real floats.

    Raises:
        TypeError: the layer does not return a JAX array, or it is a Linen module without variables.
        ValueError: the array that it returns has another shape than x.
    """
    linen = getattr(sys.modules.get("flax"), "linen", None)
    if linen is not None and isinstance(layer, linen.Module) and layer.scope is None:
        raise TypeError("layer: got a Linen module without variables; expected functools.partial(layer.apply, {}).")
    if is_nnx(layer):
        nnx = sys.modules["flax.nnx"]
        graph, state = nnx.split(layer)
        y, pull = jax.vjp(lambda x: nnx.merge(graph, state, copy=True)(x), x)  # Variables of this trace, free to change
    else:
        y, pull = jax.vjp(layer, x)
    if not isinstance(y, JaxArray):
        raise TypeError(f"layer: returned a {type(y).__name__}; expected a JAX array.")
    if y.shape != x.shape:
        raise ValueError(f"layer: returned the shape {y.shape}; expected that of x, {x.shape}.")
    is_identity = y.dtype == x.dtype and np.asarray(y).tobytes() == np.asarray(x).tobytes()
    return Pullback(is_identity, lambda cotangent: numbers(pull(jnp.asarray(cotangent, y.dtype))[0]))


def names(model: Any, frozen: bool = False) -> list[str]:
    """Return the names of all parameters: `nnx.Param`s, or the arrays of floats in a pytree. None of them is frozen."""
    return [] if frozen else list(split(model).parameters)


def _bypassing(case: Case, factor: float | None) -> AbstractContextManager[Bypass | None]:
    return nullcontext() if factor is None else reversal_bypassed(case.layer, factor)


_Parameters = dict[str, JaxArray]
_Differentiated = Callable[[_Parameters, JaxArray], tuple[_Parameters, JaxArray]]


def _differentiated(loss: Loss, case: Case, bypass: Bypass | None) -> tuple[_Differentiated, _Parameters]:
    """Return the function of (parameters, scale) to the scaled loss's gradients and the loss, and the parameters."""
    model = split(case.model)
    is_part = bypass is not None and case.layer is not None and not is_function(case.layer)
    layer_names = names_of_layer(case.model, case.layer) if is_part else []

    def scaled(chosen: _Parameters, scale: JaxArray) -> tuple[JaxArray, JaxArray]:
        copy = model.join({**model.parameters, **chosen})
        bypassing: AbstractContextManager[None] = nullcontext()
        if is_part and bypass is not None:
            bypassing = layer_bypassed_in(copy, case.layer, layer_names, bypass)
        with bypassing:
            value = loss(copy, case.batch)
        return value * scale.astype(value.dtype), value

    chosen = {name: model.parameters[name] for name in (*case.names, *case.others)}
    # It runs once or twice, so a quick compilation is worth more than a quick program.
    compiled = jax.jit(jax.grad(scaled, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    return compiled, chosen
