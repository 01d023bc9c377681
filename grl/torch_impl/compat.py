"""The names under which other libraries offer a gradient reversal layer, each a thin name for this project's layer.

To use them, change one import. The arguments, attributes and methods are those of the originals. The gradients are
those of `gradient_reversal`, also where the originals' are wrong: under `torch.compile` with `torch.func`, in second
order and with a 16-bit λ. `grl.jax_impl.compat` has the name that JAX users know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from grl.torch_impl.function import Coefficient, GradientReverseFunction, gradient_reversal
from grl.torch_impl.module import GRL

__all__ = [
    "GradReverse",
    "GradientReversal",
    "GradientReverseFunction",
    "GradientReverseLayer",
    "RevGrad",
    "ReverseLayerF",
    "WarmStartGradientReverseLayer",
    "grad_reverse",
    "revgrad",
]

T = TypeVar("T")

ReverseLayerF = GradientReverseFunction
"""`ReverseLayerF.apply(x, alpha)` of fungtion/DANN, DeepDA and robustlearn."""

GradReverse = GradientReverseFunction
"""`GradReverse.apply(x, alpha)` of pykale and many DANN repositories."""

GradientReverseLayer = GRL
"""`GradientReverseLayer()(x, coeff)` of the Transfer-Learning-Library, and `GradientReverseLayer(coeff)(x)`."""


def revgrad(input_: T, alpha_: Coefficient) -> T:
    """Return `input_`; its gradient is multiplied by −α. The function of pytorch-revgrad.

    Args:
        input_: a tensor of any shape, or a pytree of tensors.
        alpha_: α, as `coeff` of `gradient_reversal`.

    Raises:
        TypeError, ValueError: as `gradient_reversal` does.
    """
    y: T = gradient_reversal(input_, alpha_)
    return y


def grad_reverse(x: T, lambd: Coefficient = 1.0) -> T:
    """Return `x`; its gradient is multiplied by −λ. The function of many DANN repositories.

    Args:
        x: a tensor of any shape, or a pytree of tensors.
        lambd: λ, as `coeff` of `gradient_reversal`.

    Raises:
        TypeError, ValueError: as `gradient_reversal` does.
    """
    y: T = gradient_reversal(x, lambd)
    return y


class RevGrad(GRL):
    """The layer of pytorch-revgrad: `RevGrad(alpha=1.0)`.

    Args:
        alpha: α, what the gradient is multiplied by, negated.

    Raises:
        TypeError, ValueError: α is not acceptable.
    """

    def __init__(self, alpha: Coefficient = 1.0) -> None:
        super().__init__(alpha)


class GradientReversal(GRL):
    """The layer of pytorch-adapt, `GradientReversal(weight=1.0)`, and of jvanvugt, `GradientReversal(lambda_=1)`.

    A `state_dict` of pytorch-adapt's layer, which holds λ as `weight` of shape (1,), loads.

    Args:
        weight: λ.
        lambda_: λ by its other name.

    Raises:
        TypeError: both names are given, or λ is not acceptable.
        ValueError: λ is not acceptable.
    """

    def __init__(self, weight: Coefficient | None = None, *, lambda_: Coefficient | None = None) -> None:
        if weight is not None and lambda_ is not None:
            raise TypeError("weight and lambda_: got both; expected one of them.")
        given = lambda_ if weight is None else weight
        super().__init__(1.0 if given is None else given)

    @property
    def weight(self) -> Any:
        """λ; `update_weight` sets it."""
        return self.coeff

    @property
    def lambda_(self) -> Any:
        """λ; may be set."""
        return self.coeff

    @lambda_.setter
    def lambda_(self, value: Coefficient) -> None:
        self.coeff = value

    def update_weight(self, new_weight: Coefficient) -> None:
        """Set λ.

        Raises:
            TypeError, ValueError: λ is not acceptable.
        """
        self.coeff = new_weight

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.pop(f"{prefix}weight", None)
        if weight is not None:
            state_dict[f"{prefix}coefficient"] = weight.detach().double().reshape(())
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True)
class _WarmStart:
    """λ = 2(hi − lo)/(1 + exp(−α·i/N)) − (hi − lo) + lo at step i. It is not clipped at N, as in the original."""

    alpha: float
    lo: float
    hi: float
    max_iters: float

    def __call__(self, step: int) -> float:
        span = self.hi - self.lo
        return 2.0 * span / (1.0 + math.exp(-self.alpha * step / self.max_iters)) - span + self.lo


class WarmStartGradientReverseLayer(GRL):
    """The layer of the Transfer-Learning-Library whose λ ramps from `lo` towards `hi`.

    λ = 2(hi − lo)/(1 + exp(−α·i/N)) − (hi − lo) + lo at step i. With α = 1 it reaches 46 % of the range after N steps.

    Args:
        alpha: α, the steepness.
        lo: λ at step 0.
        hi: what λ tends to.
        max_iters: N.
        auto_step: whether each `forward` in training mode counts as a step; λ of that call is the one before it.

    Raises:
        TypeError, ValueError: λ is not acceptable.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        lo: float = 0.0,
        hi: float = 1.0,
        max_iters: float = 1000.0,
        auto_step: bool = False,
    ) -> None:
        super().__init__(_WarmStart(alpha, lo, hi, max_iters))
        self.auto_step = auto_step

    @property
    def iter_num(self) -> int:
        """i, the number of steps so far; may be set."""
        return self._read_step()

    @iter_num.setter
    def iter_num(self, count: int) -> None:
        self._write_step(count)
        if self._schedule is not None:
            self._set(self._schedule, count)

    def forward(self, x: T, coeff: Coefficient | None = None, reverse: bool = True) -> T:
        """Return `x`, as `GRL` does; with `auto_step` in training mode, step afterwards.

        Args:
            x: a tensor or a pytree of tensors.
            coeff: λ for this call only.
            reverse: False passes values and gradients on as they are.

        Raises:
            TypeError, ValueError: as `gradient_reversal` does.
        """
        if not (self.auto_step and self.training):
            return super().forward(x, coeff, reverse)
        y: T = self._forward_and_step(x, coeff, reverse)
        return y

    # Compiled, the step would change the λ that the graph's backward pass is still to read.
    @torch.compiler.disable(reason="the layer steps by itself")  # type: ignore[untyped-decorator]  # untyped in torch
    def _forward_and_step(self, x: T, coeff: Coefficient | None, reverse: bool) -> T:
        y: T = super().forward(x, coeff, reverse)
        self.step()
        return y
