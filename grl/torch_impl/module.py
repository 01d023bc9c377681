"""Gradient reversal as a layer: an `nn.Module` that holds λ and, if wanted, the schedule that ramps it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from grl.torch_impl.function import _as_coefficient, gradient_reversal

__all__ = ["GRL"]


class GRL(nn.Module):
    """Gradient reversal layer: y = x forward, x̄ = −λ·ȳ backward, with λ kept in the layer.

    λ is a Python float, no buffer: `.half()` and `.to(...)` leave it exact, changing it neither recompiles more than
    once nor synchronises with the device. It travels in the `state_dict` together with the step count. There are
    no parameters.

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

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` keeps: λ and the step count, exactly. A schedule is code and stays with the layer."""
        return {"coeff": self._coeff, "step": self._step}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take λ and the step count back from a `state_dict`."""
        coeff = _held(state["coeff"])
        self._coeff = coeff.clone() if isinstance(coeff, Tensor) else coeff  # as PyTorch's own loading copies
        self._step = state["step"]

    def extra_repr(self) -> str:
        """λ, and the schedule with its step count if there is one."""
        schedule = f", schedule={self._schedule}, step={self._step}" if self._schedule is not None else ""
        return f"coeff={self._coeff}{schedule}"


def _held(coeff: Any) -> float | Tensor:
    """λ as a layer holds it: no Parameter, no Buffer (`.half()` would round it), no part of a graph."""
    coeff = _as_coefficient(coeff)
    return coeff.detach() if isinstance(coeff, Tensor) else coeff
