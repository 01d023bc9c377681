"""Gradient reversal as a function: R(x; λ) = x with the declared Jacobian −λ·I."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling as _is_dynamo_compiling
from torch.utils import _pytree as pytree

from grl.coefficient import aligned_shape, finite_number, own_array, require_real
from grl.leaves import is_plain

__all__ = ["Coefficient", "GradientReverseFunction", "gradient_reversal"]

Coefficient: TypeAlias = float | Tensor | NDArray[Any]
"""λ: a finite real number, or a real tensor or NumPy array with one value in all, per sample, or per element."""


def gradient_reversal(x: Any, coeff: Any = 1.0) -> Any:
    """Return `x` unchanged; multiply its gradient by −λ on the way back.

    Forward y = x, a view of the same storage. Backward g ↦ −λ·g: one multiply and one rounding, taken in float32 for
    float16 and bfloat16. The Jacobian is −λ·I in forward mode and at every higher order as well, in eager PyTorch,
    under `torch.func`, `torch.compile` and every composition of the two.

    Args:
        x: a tensor of any shape, or a pytree (tuple, list, dict, nested) of tensors. Leaves that carry no gradient
            (integers, bools, plain Python values, functions) are returned as they are.
        coeff: λ; reverses where positive, blocks where 0, passes on (scaled) where negative. A finite real number,
            a 0-d real tensor, one value per sample with shape (N,), or one per element. λ never gets a gradient.

    Returns:
        What came in, values bit for bit the same, each tensor with x's dtype, shape, strides, device and subclass.
        Under `torch.func` and forward-mode differentiation the value is a copy instead of a view. So it is in a program
        captured by `torch.export`, which holds the layer as the operator `grl::gradient_reversal` and needs `grl` to
        run; captured under `torch.no_grad()`, or by `torch.onnx.export`, it is a plain identity. (Whatever captures
        operators alone, as `make_fx` does, captures the derivative where it is taken inside, and no rule for later.)

    Raises:
        TypeError: λ is a bool, a string, None or complex; or x holds an array of another library, or an object that
            PyTorch's pytrees do not know and that may hold tensors.
        ValueError: λ is not finite, or its shape fits neither of the forms above.
        RuntimeError: from PyTorch, when the result is changed in place (`nn.ReLU(inplace=True)` right after).

    Example:
        >>> x = torch.ones(3, requires_grad=True)
        >>> gradient_reversal(x, 0.5).sum().backward()
        >>> x.grad
        tensor([-0.5000, -0.5000, -0.5000])

    Reference:
        Ganin & Lempitsky 2015, Unsupervised Domain Adaptation by Backpropagation, arXiv:1409.7495.
    """
    # One plain tensor, a Python float, nothing that traces or transforms: by far the commonest call, and the only
    # one whose cost would be noticed. `Function.apply` binds its signature by `inspect`, which alone costs thrice this.
    if (
        type(x) is Tensor
        and type(coeff) is float
        and not _is_dynamo_compiling()
        and not _are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and coeff - coeff == 0.0  # finite; the cheapest way to ask
    ):
        return _apply_eagerly(x, coeff)
    if _is_dynamo_compiling() and not _are_functorch_transforms_active() and forward_ad._current_level >= 0:
        return _reverse_uncompiled(x, coeff)
    coeff = _as_coefficient(coeff)
    if isinstance(x, Tensor):
        return _reverse_leaf(x, coeff)
    return pytree.tree_map(lambda leaf: _reverse_leaf(leaf, coeff), x)


# A graph is run on dual numbers operator by operator, and has none for this rule. (Inductor's drops all tangents up to
# torch 2.13 at least, pytorch#187284.)
_reverse_uncompiled = torch.compiler.disable(gradient_reversal, reason="a graph would not reverse dual numbers")


class GradientReverseFunction(Function):
    """The rule itself, as a `torch.autograd.Function`: `GradientReverseFunction.apply(x, coeff=1.0)`.

    y = x; x̄ = −λ·ȳ; ẏ = −λ·ẋ. Right under `torch.func` and `torch.compile` like `gradient_reversal`, which adds
    pytrees and a shorter way through PyTorch. Compiled, up to torch 2.12, it takes one graph for each value of a Python
    number λ, until PyTorch's limit of eight refuses; a 0-d tensor takes one for all.

    Args:
        x: one tensor of any shape.
        coeff: λ, as for `gradient_reversal`.

    Returns:
        A view of `x`, or a copy where `gradient_reversal` returns one.

    Raises:
        TypeError, ValueError, RuntimeError: as `gradient_reversal` does.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> GradientReverseFunction.apply(x).sum().backward()
        >>> x.grad
        tensor([-1., -1.])

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """

    @classmethod
    def apply(cls, x: Any, coeff: Any = 1.0) -> Any:
        """Return `x`; its gradient is multiplied by −λ on the way back."""
        # Under `torch.func` a view that a Function returns is not known to be one: what changes either in place would
        # change the values of both and the derivative of one.
        if _are_functorch_transforms_active():
            x = x.clone()
        return super().apply(x, coeff)  # type: ignore[no-untyped-call]  # untyped in torch

    @staticmethod
    def forward(x: Any, coeff: float | Tensor = 1.0) -> Any:
        """Return a view of `x`, or a copy where PyTorch admits no view (see `gradient_reversal`)."""
        if isinstance(x, torch.fx.Proxy):  # a symbolic trace (torch.fx) keeps the call as it stands
            return x.tracer.create_proxy("call_function", gradient_reversal, (x, coeff), {})
        coeff = _coefficient_for(x, coeff)
        if torch.compiler.is_exporting() and not torch.onnx.is_in_onnx_export():
            _refuse_tangents()
            return _exported_reverse(x, torch.as_tensor(coeff, dtype=torch.float64))
        if forward_ad._current_level >= 0:
            # PyTorch demands of a view's tangent that it be a view of the tangent that came in; −λ·ẋ is none.
            return x.clone()
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, float | Tensor], output: Any) -> None:
        """Keep λ for the derivative, and nothing else."""
        if isinstance(output, torch.fx.Proxy):
            return
        coeff = _coefficient_for(*inputs)
        ctx.coeff = coeff
        if not isinstance(coeff, Tensor):
            return
        is_traced = isinstance(coeff, FakeTensor | FunctionalTensor)  # then what is kept is a part of the graph
        own = coeff if is_traced else _own_tensor(coeff)
        if is_traced or is_functorch_wrapped_tensor(coeff):
            ctx.coeff = None
            ctx.save_for_backward(own)
            ctx.save_for_forward(own)
        else:  # not saved for backward: that a checkpoint computes again, from the λ that it finds by then
            ctx.coeff = own

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        """x̄ = −λ·ȳ. λ gets no gradient."""
        return _scale(cotangent, _coefficient_of(ctx)), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        """ẏ = −λ·ẋ."""
        return _scale(tangent, _coefficient_of(ctx))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, coeff: Any = 1.0) -> tuple[Any, int | None]:
        """The rule for a batch of x, of λ, or of both is the same rule with one more dimension."""
        x_dim, coeff_dim = (*in_dims, None)[:2]
        coeff = _as_coefficient(coeff)
        if isinstance(coeff, Tensor):
            # Every λ gets a value of its own, although all are x: what comes back to a common one would be their sum.
            x = x.expand(info.batch_size, *x.shape).contiguous() if x_dim is None else x.movedim(x_dim, 0)
            coeff = coeff.unsqueeze(0) if coeff_dim is None else coeff.movedim(coeff_dim, 0)
            shape = aligned_shape(coeff.shape[1:], x.shape[1:]) or (1,) * (x.dim() - 1)
            coeff, x_dim = coeff.reshape(len(coeff), *shape), 0
        return GradientReverseFunction.apply(x, coeff), x_dim


# Dynamo would otherwise inline `forward` alone under `torch.func` and drop the gradient without a word (pytorch#193279;
# for jvp pytorch#192985; torch 2.11 to 2.13), and refuse a Function that has a `jvp`. Kept whole in the graph, the
# Function is traced by AOTAutograd, which differentiates it as eager PyTorch does.
torch.compiler.allow_in_graph(GradientReverseFunction)


class _EagerReverse(Function):
    """The same rule in the form that PyTorch runs fastest: forward and context in one function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coeff: float) -> Tensor:
        ctx.coeff = coeff
        return x.view_as(x)  # a tenth faster than `return x`, of which autograd makes the same view itself

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return _scale(cotangent, ctx.coeff), None


# The C++ apply, without the Python wrapper that looks for transformations.
_apply_eagerly: Callable[[Tensor, float], Tensor] = super(Function, _EagerReverse).apply


def _scale(tensor: Tensor, coeff: float | Tensor) -> Tensor:
    """−λ·t with one rounding: in float32 for 16-bit floats, in t's own precision otherwise."""
    if tensor.is_complex():  # λ is real: a complex multiply would turn inf·0 into NaN
        return torch.complex(_scale(tensor.real, coeff), _scale(tensor.imag, coeff))
    if not isinstance(coeff, Tensor):
        if tensor.dtype.itemsize > 1:
            return tensor * -coeff  # PyTorch itself multiplies a 16-bit tensor by a number in float32
        coeff = torch.tensor(coeff, dtype=torch.float64)  # and an 8-bit one by nothing
    precision = torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype
    return (tensor.to(precision) * -coeff.to(precision)).to(tensor.dtype)


def _own_tensor(coeff: Tensor) -> Tensor:
    """A copy that nobody else changes; of one number that is spread out, that number."""
    for dim, stride in enumerate(coeff.stride()):
        if stride == 0 and coeff.shape[dim] > 1:
            coeff = coeff.narrow(dim, 0, 1)
    return coeff.clone()


def _coefficient_of(ctx: Any) -> float | Tensor:
    if ctx.coeff is not None:
        return ctx.coeff  # type: ignore[no-any-return]
    (coeff,) = ctx.saved_tensors
    return coeff  # type: ignore[no-any-return]


@torch.library.custom_op("grl::gradient_reversal", mutates_args=())
def _exported_reverse(x: Tensor, coeff: Tensor) -> Tensor:
    """The rule as an operator: a program captured by `torch.export` keeps operators and forgets Functions."""
    _refuse_tangents()
    return x.clone()


def _refuse_tangents() -> None:
    if forward_ad._current_level >= 0:  # an operator of one's own has no rule for them, and would drop them
        raise NotImplementedError(
            "a program captured by torch.export (PyTorch 2.11 to 2.13) has no forward mode through a gradient reversal;"
            " reverse mode it has."
        )


_exported_reverse.register_fake(lambda x, coeff: torch.empty_like(x))
_exported_reverse.register_autograd(
    lambda ctx, cotangent: (_scale(cotangent, _coefficient_of(ctx)), None),
    setup_context=GradientReverseFunction.setup_context,
)


# Up to torch 2.12 a Python number that the backward pass needs costs one compilation for each of its values; as the
# factor of a tensor it costs two in all, as it does by itself from 2.13 on.
_NUMBERS_RECOMPILE = torch.torch_version.TorchVersion(torch.__version__) < "2.13"


def _as_coefficient(coeff: Any) -> float | Tensor:
    if (type(coeff) is float or type(coeff) is int) and torch.compiler.is_compiling() and coeff - coeff == 0:
        # Traced, it may have no value to look at: a real comparison would compile anew for each λ. This one is settled
        # without a value, and yet tells the numbers that are traced as constants, as the first one and any NaN are.
        return torch.ones((), dtype=torch.float64) * coeff if _NUMBERS_RECOMPILE else float(coeff)
    if isinstance(coeff, np.ndarray):  # it may change before backward, and NumPy would not tell
        traced = torch.compiler.is_compiling()  # then it is a tensor already
        coeff = torch.as_tensor(coeff).clone() if traced else torch.from_numpy(own_array(coeff))
    if isinstance(coeff, Tensor):
        require_real(coeff.dtype, is_real=not (coeff.is_complex() or coeff.dtype == torch.bool))
        return coeff
    if isinstance(coeff, torch.SymFloat | torch.SymInt):  # a number that is being traced: it has no value to check
        return coeff  # type: ignore[return-value]
    return finite_number(coeff)


def _coefficient_for(x: Tensor, coeff: Any) -> float | Tensor:
    """λ in the shape and on the device in which it multiplies a gradient of x; a tensor is cut off from autograd."""
    number_or_tensor = _as_coefficient(coeff)
    if not isinstance(number_or_tensor, Tensor):
        return number_or_tensor
    aligned = number_or_tensor.detach().reshape(aligned_shape(number_or_tensor.shape, x.shape))
    # PyTorch itself takes one number from the CPU to any device, and nothing else.
    return aligned if aligned.dim() == 0 and aligned.device.type == "cpu" else aligned.to(x.device)


_TORCHS_OWN = (
    torch.SymInt,
    torch.SymFloat,
    torch.device,
    torch.dtype,
    torch._ops.OpOverloadPacket,
    torch._ops.OpOverload,
)


def _reverse_leaf(leaf: Any, coeff: float | Tensor) -> Any:
    if isinstance(leaf, torch.fx.Proxy):
        return GradientReverseFunction.apply(leaf, coeff)
    if not isinstance(leaf, Tensor):
        if is_plain(leaf) or isinstance(leaf, _TORCHS_OWN):
            return leaf
        kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
        raise TypeError(f"x: got a {kind}; expected torch tensors, in tuples, lists and dicts (pytrees).")
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return leaf
    if torch.compiler.is_exporting() and not torch.is_grad_enabled() and forward_ad._current_level < 0:
        return leaf.view_as(leaf)  # a graph that will never be differentiated runs anywhere without this operator
    return GradientReverseFunction.apply(leaf, coeff)
