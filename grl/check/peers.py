"""Layers of other packages, where they are installed, and the layers that articles print.

Each keeps its own order of arguments, sign and arithmetic.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from grl.check.form import Form
from grl.check.forms import function_form

__all__ = ["PACKAGES", "peer_forms"]

PACKAGES = {"torch": ("pytorch-revgrad", "torch-gradient-reversal"), "jax": ("optax",)}
"""The distributions whose layers are checked if they are installed, by backend."""


def peer_forms(backend: str) -> list[Form]:
    """Return the forms of other packages and of articles.

    Args:
        backend: "torch" or "jax", which is then imported.
    """
    return _torch_peers() if backend == "torch" else _jax_peers()


def _torch_peers() -> list[Form]:
    from torch import Tensor, nn
    from torch.autograd import Function

    class Article(Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor, coeff: float = 1.0) -> Tensor:
            ctx.coeff = coeff
            return input.clone()

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
            return grad_output.neg() * ctx.coeff, None

    class ArticleModule(nn.Module):
        def __init__(self, coeff: float = 1.0) -> None:
            super().__init__()
            self.coeff = coeff

        def forward(self, input: Tensor) -> Tensor:
            y: Tensor = Article.apply(input, self.coeff)  # type: ignore[no-untyped-call]  # untyped in torch
            return y

    forms = [
        function_form("article's Function", "torch", Article.apply),
        Form("article's Module", "torch", ArticleModule),
    ]
    if find_spec("pytorch_revgrad") is not None:
        forms.append(Form("pytorch-revgrad", "torch", import_module("pytorch_revgrad").RevGrad))
    if find_spec("gradient_reversal") is not None:
        function = import_module("gradient_reversal").gradient_reversal
        forms.append(function_form("torch-gradient-reversal", "torch", function))
    return forms


def _jax_peers() -> list[Form]:
    import jax
    from jax import Array

    @jax.custom_vjp
    def reverse(x: Array, coeff: Array) -> Array:
        return x

    reverse.defvjp(lambda x, coeff: (x, coeff), lambda coeff, g: (-coeff * g, None))

    @jax.custom_jvp
    def reverse_jvp(x: Array, coeff: Array) -> Array:
        return x

    @reverse_jvp.defjvp
    def rule(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, coeff), (tangent, _) = primals, tangents
        return x, -coeff * tangent

    forms = [
        function_form("plain custom_vjp", "jax", reverse),
        function_form("plain custom_jvp", "jax", reverse_jvp),
    ]
    if find_spec("optax") is not None:
        import optax

        forms.append(function_form("optax.scale_gradient", "jax", lambda x, coeff: optax.scale_gradient(x, -coeff)))
    return forms
