"""The name under which JAX users know a reversal: `scale_gradient`. `grl.torch_impl.compat` has PyTorch's names."""

from __future__ import annotations

from typing import TypeVar

from jax import Array

from grl.jax_impl.function import gradient_reversal

__all__ = ["scale_gradient"]

T = TypeVar("T")


def scale_gradient(x: T, scale: float | Array) -> T:
    """Return `x`; its gradient is multiplied by `scale`. The function of Optax, `optax.scale_gradient`.

    `scale_gradient(x, -0.5)` is `gradient_reversal(x, 0.5)`. Other than the original, the second derivative of f(x) is
    scale²·f'', and a 16-bit gradient is multiplied by a scale that is not rounded first.

    Args:
        x: an array of any shape, or a pytree of arrays.
        scale: the factor; negative reverses, 0 blocks, 1 passes on. Shapes as for `coeff` of `gradient_reversal`.

    Returns:
        What came in, value by value.

    Raises:
        TypeError, ValueError: as `gradient_reversal` does.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.grad(lambda x: scale_gradient(x, -0.5).sum())(jnp.ones(2))
        Array([-0.5, -0.5], dtype=float32)

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """
    y: T = gradient_reversal(x, -scale)
    return y
