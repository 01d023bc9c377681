"""Gradient reversal as a layer: an `nn.Module` that holds λ and, if wanted, the schedule that ramps it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from grl.torch_impl.function import _as_coefficient, gradient_reversal

__all__ = ["GRL"]


class GRL(nn.Module):
    """Gradient reversal layer: y = x forward, x̄ = −λ·ȳ backward, with λ kept in the layer.

    λ is a Python float, no buffer: `.half()` and `.to(...)` leave it exact, changing it neither recompiles more than
    once nor synchronises with the device (`torch.compile(dynamic=False)`, which compiles anew for every number, wants
    it as a tensor). It travels in the `state_dict` together with the step count. There are no parameters.

    λ is that of the forward call. Where a checkpoint has the backward pass make that call again (`use_reentrant=True`,
    or around a compiled part), it is the λ that is held by then: call `step` after backward.

    Args:
        coeff: λ (see `gradient_reversal`), or a schedule `step -> λ` such as `grl.DannSchedule(total_steps)`.

    Raises:
        TypeError, ValueError: λ is not acceptable.

    Example:
        >>> from grl import DannSchedule
        >>> layer = GRL(DannSchedule(total_steps=100))
        >>> layer.coeff
        0.0
        >>> for _ in range(50):
        ...     layer.step()
        >>> round(layer.coeff, 3)
        0.987

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """

    port_kind = "GRL"  # `grl.weights` pairs a layer with one of the same kind

    def __init__(self, coeff: Any = 1.0) -> None:
        super().__init__()
        self._step = 0
        self.coeff = coeff

    def forward(self, x: Any, coeff: Any = None, reverse: bool = True) -> Any:
        """Return `x`; its gradient is multiplied by −λ on the way back.

        Args:
            x: a tensor or a pytree of tensors, any shapes.
            coeff: λ for this call only; the layer's own by default.
            reverse: False passes values and gradients on as they are.

        Returns:
            `x`, as `gradient_reversal` returns it.

        Raises:
            TypeError, ValueError: as `gradient_reversal` does.
        """
        if not reverse:
            return x
        return gradient_reversal(x, self._coeff if coeff is None else coeff)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "coeff":  # nn.Module would register a Parameter, a Buffer or a Module under this name instead
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def coeff(self) -> Any:
        """λ as it is now. Setting it to a number ends a schedule; setting a schedule starts one at the step count."""
        return self._coeff

    @coeff.setter
    def coeff(self, value: Any) -> None:
        self._schedule = value if callable(value) else None
        self._coeff = _held(value(self._step) if callable(value) else value)

    def step(self) -> None:
        """Advance the step count by one, and λ with it if a schedule gives it. Nothing else does.

        Call it outside of what `torch.compile` compiles: inside, each step count is a program of its own.
        """
        self._step += 1
        if self._schedule is not None:
            self._coeff = _held(self._schedule(self._step))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # As tensors, which is all that those who walk over a `state_dict` expect in it. A schedule is code, and stays.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        coeff = self._coeff if isinstance(self._coeff, Tensor) else _exactly(self._coeff, torch.float64)
        destination[f"{prefix}coeff"] = coeff
        destination[f"{prefix}step"] = _exactly(self._step, torch.int64)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        # A state_dict without them is that of a model with an identity in this place: λ and the count stay.
        coeff, step = (state_dict.pop(f"{prefix}{name}", None) for name in ("coeff", "step"))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        try:
            coeff = self._coeff if coeff is None else _loaded(coeff, isinstance(self._coeff, Tensor))
            self._step = self._step if step is None else _count(step)
            self._coeff = coeff
        except (TypeError, ValueError) as error:
            rest[-1].append(f"{prefix}{error}")  # what `load_state_dict` raises at its end

    def extra_repr(self) -> str:
        """λ, and the schedule with its step count if there is one."""
        schedule = f", schedule={self._schedule}, step={self._step}" if self._schedule is not None else ""
        return f"coeff={self._coeff}{schedule}"


def _exactly(number: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(number, dtype=dtype, device="cpu")  # whatever the default device is, even "meta"


def _loaded(coeff: Any, as_tensor: bool) -> float | Tensor:
    """λ from a `state_dict`: a number again where the layer holds one."""
    if isinstance(coeff, Tensor) and coeff.dim() == 0 and not as_tensor:
        coeff = coeff.item()
    coeff = _held(coeff)
    return coeff.clone() if isinstance(coeff, Tensor) else coeff  # as PyTorch's own loading copies


def _count(step: Any) -> int:
    number = step.item() if isinstance(step, Tensor) and step.dim() == 0 else step
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise TypeError(f"step: got {step!r}; expected an integer from 0.")
    return number


def _held(coeff: Any) -> float | Tensor:
    """λ as a layer holds it: no Parameter, no Buffer (`.half()` would round it), no part of a graph."""
    coeff = _as_coefficient(coeff)
    return coeff.detach() if isinstance(coeff, Tensor) else coeff
