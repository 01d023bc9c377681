"""Gradient reversal as a function: R(x; λ) = x with the declared Jacobian −λ·I."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from grl.bypass import Bypass
from grl.coefficient import aligned_shape
from grl.leaves import is_plain
from grl.torch_impl._internals import (
    bare_apply,
    dual_state,
    is_traced,
    is_wrapped,
    transforms_may_be_active,
    transforms_must_be_active,
    tree_map,
)
from grl.torch_impl.bypass import active, current_bypass
from grl.torch_impl.coefficient import Coefficient, aligned_coefficient, as_coefficient, own_tensor, scale

__all__ = ["Coefficient", "GradientReverseFunction", "gradient_reversal"]

T = TypeVar("T")
TensorT = TypeVar("TensorT", bound=Tensor | torch.fx.Proxy)


def gradient_reversal(x: T, coeff: Coefficient = 1.0) -> T:
    """Return `x` unchanged; multiply its gradient by −λ on the way back.

    Forward y = x, a view of the same storage. Backward g ↦ −λ·g: one multiply and one rounding, taken in float32 for
    float16 and bfloat16. The Jacobian is −λ·I in forward mode and at every higher order as well, in eager PyTorch,
    under `torch.func`, `torch.compile` and every composition of the two.

    Args:
        x: a tensor of any shape, or a pytree (tuple, list, dict, nested) of tensors. Leaves that carry no gradient
            (integers, bools, plain Python values, functions) are returned as they are.
        coeff: λ. A positive λ reverses, 0 blocks, a negative λ passes the gradient on, scaled. A finite real number,
            a real tensor of one element, one value per sample with shape (N,), or one per element. λ never gets a
            gradient.

    Returns:
        The same structure with the same values, bit for bit. Each tensor has x's dtype, shape, strides, device and
        subclass. Under `torch.func` and forward-mode differentiation the value is a copy instead of a view. It is also
        a copy in a program captured by `torch.export`, which holds the layer as the operator `grl::gradient_reversal`
        and needs `grl` to run. Captured under `torch.no_grad()`, or by `torch.onnx.export`, the layer is a plain
        identity. (`make_fx` captures operators alone: a derivative that is taken inside is captured, the rule for a
        later derivative is not.)

    Raises:
        TypeError: λ is a bool, a string, None or complex; or x holds an array of another library, a sparse or strided
            nested tensor, or an object that PyTorch's pytrees do not know and that could contain tensors.
        ValueError: λ is not finite, or its shape fits none of the forms above.
        RuntimeError: from PyTorch, when the result is changed in place (`nn.ReLU(inplace=True)` right after).

    Example:
        >>> x = torch.ones(3, requires_grad=True)
        >>> gradient_reversal(x, 0.5).sum().backward()
        >>> x.grad
        tensor([-0.5000, -0.5000, -0.5000])

    Reference:
        Ganin & Lempitsky 2015, Unsupervised Domain Adaptation by Backpropagation, arXiv:1409.7495.
    """
    # One plain tensor, a Python float, no trace and no transformation: by far the commonest call, and the only one
    # whose cost would be noticed. `Function.apply` binds its signature by `inspect`, which alone costs thrice this.
    if (
        type(x) is Tensor
        and type(coeff) is float
        and not is_dynamo_compiling()
        and not transforms_may_be_active()
        and dual_state._current_level < 0
        and not active
        and coeff - coeff == 0.0  # finite; the cheapest test
    ):
        try:
            return _apply_eagerly(x, coeff)
        except RuntimeError:
            _require_strides(x)  # says it in a sentence
            raise
    if is_dynamo_compiling() and not transforms_must_be_active() and dual_state._current_level >= 0:
        uncompiled: T = _reverse_uncompiled(x, coeff)
        return uncompiled
    checked = as_coefficient(coeff)
    if isinstance(x, Tensor):
        return _reverse_leaf(x, checked)
    tree: T = tree_map(lambda leaf: _reverse_leaf(leaf, checked), x)
    return tree


# A compiled graph runs dual numbers operator by operator and has no operator for this rule. (Inductor drops all
# tangents up to torch 2.13 at least, pytorch#187284.)
_reverse_uncompiled = torch.compiler.disable(gradient_reversal, reason="a graph would not reverse dual numbers")


class _Context(Protocol):
    coeff: float | Tensor | Bypass | None

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def save_for_forward(self, *tensors: Tensor) -> None: ...


class GradientReverseFunction(Function):
    """The rule itself, as a `torch.autograd.Function`: `GradientReverseFunction.apply(x, coeff=1.0)`.

    y = x; x̄ = −λ·ȳ; ẏ = −λ·ẋ. It is right under `torch.func` and `torch.compile` like `gradient_reversal`, which adds
    pytrees and a shorter way through PyTorch. Up to torch 2.12, `torch.compile` makes one graph of it for each value of
    a Python number λ, until PyTorch's limit of eight raises; a tensor λ takes one graph for all values.

    Args:
        x: one tensor of any shape.
        coeff: λ, as for `gradient_reversal`.

    Returns:
        A view of `x`, or a copy where `gradient_reversal` returns one.

    Raises:
        TypeError, ValueError, RuntimeError: as `gradient_reversal` does. An instance, `GradientReverseFunction(λ)`,
            raises TypeError.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> GradientReverseFunction.apply(x).sum().backward()
        >>> x.grad
        tensor([-1., -1.])

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """

    def __init__(self, x: object, coeff: object = 1.0) -> None:
        # PyTorch before 1.3 kept λ in an instance. Today `apply` belongs to the class and would not see it.
        raise TypeError(
            "GradientReverseFunction: got a call of the class; expected GradientReverseFunction.apply(x, coeff)."
        )

    @classmethod
    def apply(cls, x: TensorT, coeff: Coefficient = 1.0) -> TensorT:
        """Return `x`; its gradient is multiplied by −λ on the way back."""
        # `torch.func` does not know that a Function returned a view. A change of x or y in place would change the
        # values of both and the derivative of only one.
        _require_strides(x)
        argument = x.clone() if transforms_may_be_active() else x
        reversed_x: TensorT = super().apply(argument, coeff)  # type: ignore[no-untyped-call]  # untyped in torch
        return reversed_x

    @staticmethod
    def forward(x: Tensor | torch.fx.Proxy, coeff: Coefficient = 1.0) -> Tensor | torch.fx.Proxy:
        """Return a view of `x`, or a copy where PyTorch allows no view (see `gradient_reversal`)."""
        if isinstance(x, torch.fx.Proxy):  # a symbolic trace (torch.fx) keeps the call as it stands
            return x.tracer.create_proxy("call_function", gradient_reversal, (x, coeff), {})
        checked = aligned_coefficient(x, coeff)
        if torch.compiler.is_exporting() and not torch.onnx.is_in_onnx_export():
            _refuse_tangents()
            exported: Tensor = _exported_reverse(x, torch.as_tensor(checked, dtype=torch.float64))
            return exported
        if dual_state._current_level >= 0:
            # PyTorch requires the tangent of a view to be a view of the incoming tangent. −λ·ẋ is none.
            return x.clone()
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, Coefficient], output: Tensor | torch.fx.Proxy) -> None:
        """Keep λ for the derivative, and nothing else."""
        if isinstance(output, torch.fx.Proxy):
            return
        bypass = current_bypass()
        coeff = aligned_coefficient(*inputs)
        ctx.coeff = coeff if bypass is None else bypass
        if bypass is not None or not isinstance(coeff, Tensor):
            return
        if is_traced(coeff):  # the graph keeps it
            kept = coeff
        else:
            kept = own_tensor(coeff)
            if not is_wrapped(coeff):
                # It is not saved for backward: a checkpoint would compute it again, from the λ that it finds by then.
                ctx.coeff = kept
                return
        ctx.coeff = None
        ctx.save_for_backward(kept)
        ctx.save_for_forward(kept)

    @staticmethod
    def backward(ctx: _Context, cotangent: Tensor) -> tuple[Tensor, None]:
        """x̄ = −λ·ȳ. λ gets no gradient."""
        return scale(cotangent, _coefficient_of(ctx)), None

    @staticmethod
    def jvp(ctx: _Context, tangent: Tensor, _: object) -> Tensor:
        """ẏ = −λ·ẋ."""
        return scale(tangent, _coefficient_of(ctx))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None], x: Tensor, coeff: Coefficient
    ) -> tuple[Tensor, int | None]:
        """A batch of x, of λ, or of both: the same rule with one more dimension."""
        x_dim, coeff_dim = in_dims
        checked = as_coefficient(coeff)
        if isinstance(checked, Tensor):
            # Every λ gets a copy of x, although all copies are equal: a shared x would receive the sum of their
            # gradients before λ could scale each.
            x = x.expand(info.batch_size, *x.shape).contiguous() if x_dim is None else x.movedim(x_dim, 0)
            checked = checked.unsqueeze(0) if coeff_dim is None else checked.movedim(coeff_dim, 0)
            shape = aligned_shape(checked.shape[1:], x.shape[1:]) or (1,) * (x.dim() - 1)
            checked, x_dim = checked.reshape(len(checked), *shape), 0
        return GradientReverseFunction.apply(x, checked), x_dim


def _require_strides(x: object) -> None:
    """Raise for a tensor that has no views: a sparse one, or a nested one of the older, strided kind."""
    if not isinstance(x, Tensor):
        return
    if x.layout not in (torch.strided, torch.jagged):
        raise TypeError(f"x: got a tensor of layout {x.layout}; expected a dense one. Reverse x.to_dense().")
    if x.is_nested and x.layout is torch.strided:
        raise TypeError(
            "x: got a nested tensor of layout torch.strided; expected one of layout torch.jagged."
            " Create it by torch.nested.nested_tensor(…, layout=torch.jagged)."
        )


# Under `torch.func`, Dynamo would otherwise inline `forward` alone and lose the gradient without a word
# (pytorch#193279; for jvp pytorch#192985; torch 2.11 to 2.13), and it refuses a Function that has a `jvp`. Kept whole
# in the graph, the Function is traced by AOTAutograd, which differentiates it as eager PyTorch does.
torch.compiler.allow_in_graph(GradientReverseFunction)


class _Apply(Protocol):
    def __call__(self, x: T, coeff: float, /) -> T: ...


class _EagerReverse(Function):
    """The same rule in the form that PyTorch runs fastest: forward and context in one function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coeff: float) -> Tensor:
        ctx.coeff = coeff
        return x.view_as(x)  # a tenth faster than `return x`, of which autograd makes the same view itself

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return scale(cotangent, ctx.coeff), None


_apply_eagerly: _Apply = bare_apply(_EagerReverse)


def _coefficient_of(ctx: _Context) -> float | Tensor:
    """λ of the forward call. It is read exactly where a derivative is taken, so a bypass counts here."""
    if isinstance(ctx.coeff, Bypass):
        ctx.coeff.runs += 1
        return -ctx.coeff.factor
    if ctx.coeff is not None:
        return ctx.coeff
    (coeff,) = ctx.saved_tensors
    return coeff


@torch.library.custom_op("grl::gradient_reversal", mutates_args=())
def _exported_reverse(x: Tensor, coeff: Tensor) -> Tensor:
    """The rule as an operator: a program captured by `torch.export` keeps operators and forgets Functions."""
    _refuse_tangents()
    return x.clone()


def _refuse_tangents() -> None:
    if dual_state._current_level >= 0:  # a custom operator has no forward-mode rule and would drop the tangents
        raise NotImplementedError(
            "a program captured by torch.export (PyTorch 2.11 to 2.13) has no forward mode through a gradient reversal;"
            " use reverse mode."
        )


_exported_reverse.register_fake(lambda x, coeff: torch.empty_like(x))
_exported_reverse.register_autograd(
    GradientReverseFunction.backward, setup_context=GradientReverseFunction.setup_context
)


# What a pytree may hold besides tensors and plain values, without a gradient.
_WITHOUT_GRADIENT = (
    torch.SymInt,
    torch.SymFloat,
    torch.device,
    torch.dtype,
    type(torch.ops.aten.add),
    type(torch.ops.aten.add.Tensor),
)


def _reverse_leaf(leaf: T, coeff: float | Tensor) -> T:
    if isinstance(leaf, torch.fx.Proxy):
        return GradientReverseFunction.apply(leaf, coeff)
    if not isinstance(leaf, Tensor):
        if is_plain(leaf) or isinstance(leaf, _WITHOUT_GRADIENT):
            return leaf
        kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
        raise TypeError(f"x: got a {kind}; expected torch tensors, in tuples, lists and dicts (pytrees).")
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return leaf
    if torch.compiler.is_exporting() and not torch.is_grad_enabled() and dual_state._current_level < 0:
        # A graph that is never differentiated runs anywhere without this operator.
        return leaf.view_as(leaf)  # type: ignore[return-value]  # a view has the type of its tensor
    return GradientReverseFunction.apply(leaf, coeff)
