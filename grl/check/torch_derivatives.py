"""PyTorch's derivatives of a layer.

To add a transformation, write one function and list it in `TRANSFORMATIONS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from grl.arrays import Array
from grl.check.form import Call, Form, Layer, WrongError, transformation
from grl.check.reference import BITS, COEFF, FIRST, SECOND, WEIGHTS, X, same, same_bits

__all__ = ["TRANSFORMATIONS"]


def the_x() -> Tensor:
    return fresh(X)


def fresh(values: Array) -> Tensor:
    """Return a tensor that shares no memory: a layer that writes into its cotangent must not change the constants."""
    return torch.from_numpy(values.copy())


def loss_of(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    weights = fresh(WEIGHTS)
    return lambda x: (weights.to(x.device, x.dtype) * torch.sin(layer(x))).sum()


def sample_loss_of(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, weights: (weights * torch.sin(layer(x))).sum()


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor | None = None) -> Tensor:
    x = (the_x() if x is None else x).requires_grad_()
    return derivative(function(x), x)


def derivative(y: Tensor, x: Tensor, cotangent: Tensor | None = None, *, create_graph: bool = False) -> Tensor:
    """Return the gradient of x; 0 if y does not depend on x, where `autograd.grad` would raise."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(
        y, x, cotangent, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return gradient


def joined(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the same loss with x attached: if the layer cuts x off, the gradient is wrong instead of missing."""
    return lambda x: loss(x) + 0 * x.sum()


@transformation("eager")
def _eager(form: Form) -> None:
    x = the_x().requires_grad_()
    y = form.make(COEFF)(x)
    if y.dtype != x.dtype:
        raise WrongError(f"dtype: expected {x.dtype}, got {y.dtype}")
    same(y.detach(), X, "value")
    same(derivative((fresh(WEIGHTS) * torch.sin(y)).sum(), x), -COEFF * FIRST)


@transformation("beside the layer: f(x) + g(R(x))")
def _beside(form: Form) -> None:
    layer = form.make(COEFF)

    def loss(x: Tensor) -> Tensor:
        features = x * 1.0
        y: Tensor = layer(features) + features  # both receive one cotangent, in the same memory
        return (fresh(WEIGHTS) * y).sum()

    same(gradient_of(loss), (1 - COEFF) * WEIGHTS)


@transformation("λ = 0, λ < 0")
def _signs(form: Form) -> None:
    for coeff in (0.0, -2.0):
        for where, layer in form.ways(coeff):
            same(gradient_of(loss_of(layer)), -coeff * FIRST, f"gradient at λ = {coeff:g}, given {where}")


@transformation("forward keeps the bits")
def _bits(form: Form) -> None:
    for what, coeff in (("value", COEFF), ("value at λ = 0", 0.0)):
        x = torch.from_numpy(BITS.view(np.float32).copy()).requires_grad_()
        y = form.make(coeff)(x)
        same_bits(y.detach().numpy(), what)


@transformation("double backward")
def _double_backward(form: Form) -> None:
    x = the_x().requires_grad_()
    first = derivative(loss_of(form.make(COEFF))(x), x, create_graph=True)
    same(derivative(first.sum(), x), COEFF**2 * SECOND, "second derivative")


@transformation("func.grad")
def _func_grad(form: Form) -> None:
    same(grad(loss_of(form.make(COEFF)))(the_x()), -COEFF * FIRST)


@transformation("func.grad, in-place operation afterwards")
def _func_grad_in_place(form: Form) -> None:
    layer = form.make(COEFF)

    def loss(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * 1.0
        y = layer(x)
        y.mul_(2.0)
        return (fresh(WEIGHTS) * (x + y)).sum(), x

    gradient, x = grad(loss, has_aux=True)(the_x())
    same(x, X, "the layer's input, when its output has been changed in place,")
    same(gradient, (1 - 2 * COEFF) * WEIGHTS)


@transformation("func.vjp")
def _func_vjp(form: Form) -> None:
    value, pullback, *_ = vjp(form.make(COEFF), the_x())
    same(value, X, "value")
    same(pullback(fresh(FIRST))[0], -COEFF * FIRST)


@transformation("func.vmap of grad")
def _func_vmap_grad(form: Form) -> None:
    gradients = vmap(grad(sample_loss_of(form.make(COEFF))))(the_x(), fresh(WEIGHTS))
    same(gradients, -COEFF * FIRST)


@transformation("func.vmap over λ")
def _func_vmap_coeff(form: Form) -> None:
    same(over_coefficients(form, lambda f: f), -np.array([0.1, -2.0])[:, None, None] * FIRST)


def over_coefficients(form: Form, compiled: Call) -> Tensor:
    form.reverse(the_x(), COEFF)  # raises NotApplicableError if there is no such argument
    coeffs = torch.tensor([0.1, -2.0])
    per_coeff = vmap(lambda c: grad(loss_of(lambda x: form.reverse(x, c)))(the_x()))
    gradients: Tensor = compiled(per_coeff)(coeffs)
    return gradients


@transformation("func.grad of vmap over λ")
def _func_grad_vmap_coeff(form: Form) -> None:
    form.reverse(the_x(), COEFF)  # raises NotApplicableError if there is no such argument
    coeffs, scales = torch.tensor([0.1, -2.0]), torch.tensor([1.0, 3.0])

    def loss(x: Tensor) -> Tensor:
        per_coeff = vmap(lambda c: form.reverse(x, c))(coeffs)
        return (scales[:, None, None] * fresh(WEIGHTS) * torch.sin(per_coeff)).sum()

    same(grad(loss)(the_x()), (2.0 * 3.0 - 0.1) * FIRST)


@transformation("per-sample λ")
def _per_sample(form: Form) -> None:
    for rows in (3, 4):  # square first: there a λ along the wrong axis fits, and gives a wrong gradient
        coeffs, x = torch.tensor([0.1, -2.0, 0.0, 1.0])[:rows], fresh(X[:rows]).requires_grad_()
        loss = (fresh(WEIGHTS[:rows]) * torch.sin(form.reverse(x, coeffs))).sum()
        same(derivative(loss, x), -coeffs[:, None] * FIRST[:rows], f"gradient of {rows} samples of 3")


@transformation("func.jacrev")
def _func_jacrev(form: Form) -> None:
    jacobian = jacrev(lambda x: torch.sin(form.make(COEFF)(x)))(the_x()).reshape(12, 12)
    same(jacobian, -COEFF * np.diag(np.cos(X).ravel()), "Jacobian")


@transformation("func.jacfwd")
def _func_jacfwd(form: Form) -> None:
    jacobian = jacfwd(lambda x: torch.sin(form.make(COEFF)(x)))(the_x()).reshape(12, 12)
    same(jacobian, -COEFF * np.diag(np.cos(X).ravel()), "Jacobian")


@transformation("func.jvp")
def _func_jvp(form: Form) -> None:
    value, tangent, *_ = jvp(form.make(COEFF), (the_x(),), (fresh(WEIGHTS),))
    same(value, X, "value")
    same(tangent, -COEFF * WEIGHTS, "tangent")


@transformation("func.hessian")
def _func_hessian(form: Form) -> None:
    same(hessian(loss_of(form.make(COEFF)))(the_x()).reshape(12, 12), COEFF**2 * np.diag(SECOND.ravel()), "Hessian")


@transformation("functional_call, per sample")
def _functional_call(form: Form) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(3, 3), nn.Linear(3, 1)

    def model(layer: Layer) -> nn.Module:
        return _Chain(copy.deepcopy(first), layer, copy.deepcopy(last))

    def gradients(network: nn.Module) -> Tensor:
        parameters = {name: p.detach() for name, p in network.named_parameters()}
        loss = lambda parameters, x: functional_call(network, parameters, (x,)).sin().sum()
        found: Tensor = vmap(grad(loss), (None, 0))(parameters, the_x())["first.weight"]
        return found

    same(gradients(model(form.make(COEFF))), -COEFF * gradients(model(nn.Identity())), "weight gradients")


class _Chain(nn.Module):
    def __init__(self, first: nn.Module, layer: Layer, last: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = first, layer, last

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.layer(self.first(x))))
        return y


@transformation("forward_ad dual numbers")
def _dual(form: Form) -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(the_x(), fresh(WEIGHTS))
        value, tangent = forward_ad.unpack_dual(form.make(COEFF)(dual))
        same(value, X, "value")
        same(np.zeros_like(X) if tangent is None else tangent, -COEFF * WEIGHTS, "tangent")


@transformation("checkpoint, reentrant")
def _checkpoint_reentrant(form: Form) -> None:
    x = the_x().requires_grad_()
    checkpoint(joined(loss_of(form.make(COEFF))), x, use_reentrant=True).backward()  # it does not support autograd.grad
    same(torch.zeros_like(x) if x.grad is None else x.grad, -COEFF * FIRST)


@transformation("checkpoint, non-reentrant")
def _checkpoint(form: Form) -> None:
    loss = loss_of(form.make(COEFF))
    same(gradient_of(lambda x: checkpoint(loss, x, use_reentrant=False)), -COEFF * FIRST)


TRANSFORMATIONS = (
    _eager,
    _beside,
    _signs,
    _bits,
    _double_backward,
    _func_grad,
    _func_grad_in_place,
    _func_vjp,
    _func_vmap_grad,
    _func_vmap_coeff,
    _func_grad_vmap_coeff,
    _per_sample,
    _func_jacrev,
    _func_jacfwd,
    _func_jvp,
    _func_hessian,
    _functional_call,
    _dual,
    _checkpoint_reentrant,
    _checkpoint,
)
"""The rows of this module, in the order of the table."""
