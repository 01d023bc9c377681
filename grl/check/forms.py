"""The layer forms of this project, and how any layer becomes a form that can be checked."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import partial
from importlib.util import find_spec
from typing import Any

from grl.check.form import Call, Form, LayerCall
from grl.check.matrix import sample_input
from grl.errors import GrlError

__all__ = ["ACCEPTED", "CheckError", "form_of", "function_form", "linen_form", "load_target", "our_forms"]

ACCEPTED = "a function of (x, coeff), or a class that takes λ and nothing else, when it is made or when it is called"
_NAMES = re.compile("coef|alpha|lam|lmb|scale|weight|strength|factor|λ", re.IGNORECASE)  # common names of λ


class CheckError(GrlError, ValueError):
    """The layer or the target cannot be checked. The message is one sentence: what came, and what was expected."""


def our_forms(backend: str) -> list[Form]:
    """Return the forms of this project.

    Args:
        backend: "torch" or "jax", which is then imported.
    """
    if backend == "torch":
        from grl import torch_impl

        rule = torch_impl.GradientReverseFunction
        return [
            function_form("gradient_reversal", backend, torch_impl.gradient_reversal),
            function_form("GradientReverseFunction", backend, rule.apply),
            Form("GRL", backend, torch_impl.GRL, lambda x, coeff: torch_impl.GRL()(x, coeff)),
        ]
    from grl import jax_impl

    forms = [
        function_form("gradient_reversal", backend, jax_impl.gradient_reversal),
        function_form("gradient_reversal_jvp", backend, jax_impl.gradient_reversal_jvp),
    ]
    if find_spec("flax") is None:
        return forms
    from grl.jax_impl import linen

    return [
        *forms,
        Form("GRL (nnx)", backend, jax_impl.GRL, lambda x, coeff: jax_impl.GRL()(x, coeff)),
        linen_form("GRL (Linen)", linen.GRL, "coeff"),
    ]


def form_of(layer: object, backend: str, name: str | None = None) -> Form:
    """Return the form of any layer.

    Args:
        layer: a function of (x, coeff); a `torch.autograd.Function`; or a class, such as an `nn.Module`, an nnx, Linen
            or Equinox Module, that takes λ when it is made, or when its objects are called with (x, λ). λ is the
            argument with one of its usual names; without such a name, the first one (after x).
        backend: "torch" or "jax", which is then imported.
        name: what the table calls it; the name of the layer by default.

    Returns:
        The form.

    Raises:
        CheckError: the layer is not callable, takes no coefficient, needs further arguments, has parameters to
            learn, or returns no array.
    """
    name = name or str(getattr(layer, "__name__", type(layer).__name__))
    form = _form_of(layer, backend, name)
    _check_output(form)
    return form


def _form_of(layer: object, backend: str, name: str) -> Form:
    if not callable(layer):
        raise CheckError(f"{name}: got an object of type {type(layer).__name__}, not callable; expected {ACCEPTED}.")
    if not isinstance(layer, type):
        return function_form(name, backend, layer, _coefficient_of(name, getattr(layer, "forward", layer), skip=1))
    return _form_of_class(layer, backend, name)


def function_form(name: str, backend: str, function: Call, keyword: str | None = None) -> Form:
    """Return the form of a function of (x, λ). λ is passed by position, or by the keyword if there is one."""
    call: LayerCall = function if keyword is None else lambda x, coeff: function(x, **{keyword: coeff})
    return Form(name, backend, lambda coeff: lambda x: call(x, coeff), call)


def linen_form(name: str, make: Call, keyword: str | None = None) -> Form:
    """Return the form of a Linen module without parameters.

    Args:
        name: what the table calls it.
        make: λ -> module.
        keyword: the argument of the module's call that is λ; None if there is none.
    """
    call = None if keyword is None else lambda x, coeff: make(1.0).apply({}, x, **{keyword: coeff})
    return Form(name, "jax", lambda coeff: lambda x: make(coeff).apply({}, x), call, make)


def load_target(target: str) -> object:
    """Import the object that a user names.

    Args:
        target: "package.module:callable".

    Raises:
        CheckError: there is no such object.

    Example:
        >>> load_target("math:sqrt")(4.0)
        2.0
    """
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise CheckError(f"target: got {target!r}; expected package.module:callable.")
    try:
        target_object: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # any exception: the import runs the user's code
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise CheckError(
            f"target: {module_name} cannot be imported ({reason}); expected an installed module."
        ) from error
    for attribute in path.split("."):
        if not hasattr(target_object, attribute):
            raise CheckError(f"target: {module_name} has no {path}; expected package.module:callable.")
        target_object = getattr(target_object, attribute)
    return target_object


def _form_of_class(layer: type, backend: str, name: str) -> Form:
    if backend == "torch":
        from torch.autograd import Function

        if issubclass(layer, Function):
            old_style = layer.setup_context is Function.setup_context  # `forward` takes the context first
            _coefficient_of(name, layer.forward, skip=2 if old_style else 1)
            return function_form(name, backend, layer.apply)
    linen = _linen_module(backend)
    is_linen = linen in layer.__mro__
    call_of = layer.forward if hasattr(layer, "forward") else layer.__call__
    in_call = _keyword_of(call_of)
    keyword: str | None = None

    def make(coeff: float) -> Any:
        return _made(name, partial(layer, coeff) if keyword is None else partial(layer, **{keyword: coeff}))

    try:
        keyword = _coefficient_of(name, layer, skip=0, ignored=("parent", "name") if is_linen else ())
        made = make(1.0)
    except CheckError:
        if is_linen or (in_call is None and not _takes_any(call_of)):
            raise
        _check_object(name, _made(name, layer), linen)
        call = lambda x, *coeff, **named: layer()(x, *coeff, **named)
        return function_form(name, backend, call, in_call)
    _check_object(name, made, linen)
    if is_linen:
        return linen_form(name, make, in_call)
    given = None if in_call is None else lambda x, coeff: make(1.0)(x, **{in_call: coeff})
    return Form(name, backend, make, given)


def _made(name: str, build: Call) -> Any:
    try:
        return build()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise CheckError(f"{name}: cannot be made ({reason}); expected {ACCEPTED}.") from error


def _coefficient_of(name: str, function: Call, skip: int, ignored: tuple[str, ...] = ()) -> str | None:
    """Return the keyword of λ, or None if λ is the argument by position right after the first `skip`."""
    try:
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ignored]
    except (ValueError, TypeError):  # some functions written in C have no signature
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
    coefficient = next((p for p in [*positional[skip:], *keywords] if _NAMES.search(p.name)), None)
    if coefficient is None and len(positional) > skip:
        coefficient = positional[skip]
    if coefficient is None and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        raise CheckError(f"{name}: takes no coefficient; expected {ACCEPTED}.")
    further = [p.name for p in [*positional[skip:], *keywords] if p.default is p.empty and p is not coefficient]
    if further:
        raise CheckError(f"{name}: needs {', '.join(further)} too; expected {ACCEPTED}.")
    return None if coefficient is None or coefficient in positional[skip : skip + 1] else coefficient.name


def _keyword_of(method: Call) -> str | None:
    """Return the argument of a layer's call that has a name of λ; None if there is none."""
    return next((name for name in inspect.signature(method).parameters if _NAMES.search(name)), None)


def _takes_any(method: Call) -> bool:
    """Return whether a layer's call takes (*arguments), the second of which can be λ."""
    parameters = inspect.signature(method).parameters.values() if inspect.isfunction(method) else ()
    return any(p.kind == p.VAR_POSITIONAL for p in parameters)


def _linen_module(backend: str) -> type | None:
    if backend != "jax" or find_spec("flax") is None:
        return None
    from flax import linen

    return linen.Module


def _check_object(name: str, layer: object, linen: type | None) -> None:
    """Refuse a layer with parameters to learn: it is a model, and the table does not know its gradients."""
    if not callable(layer):
        raise CheckError(f"{name}: makes objects that cannot be called; expected {ACCEPTED}.")
    if _made(name, lambda: _learns(layer, linen)):
        raise CheckError(f"{name}: has parameters to learn; expected {ACCEPTED}.")


def _check_output(form: Form) -> None:
    """Refuse a layer that returns no array: every cell would raise, which would look like a refusal by the layer."""
    x = sample_input(form.backend)
    try:
        y = form.make(1.0)(x)
    except (Exception, SystemExit):  # a refusal, which the cells report
        return
    if not isinstance(y, type(x)):
        raise CheckError(f"{form.name}: called with (x, λ), returned a {type(y).__name__}; expected {ACCEPTED}.")


def _learns(layer: object, linen: type | None) -> bool:
    if hasattr(layer, "parameters"):
        return any(parameter.requires_grad for parameter in layer.parameters())  # a frozen one may hold λ
    if linen is None:
        return False
    import jax
    from flax import nnx

    if isinstance(layer, linen):
        init: Call = getattr(layer, "init")  # noqa: B009  # only Linen knows its type
        return "params" in jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((4, 3), "float32"))
    return isinstance(layer, nnx.Module) and bool(jax.tree.leaves(nnx.state(layer, nnx.Param)))
