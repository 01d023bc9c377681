"""Gradient reversal as a layer: an `nn.Module` that keeps λ and, if wanted, the schedule that ramps it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from grl.coefficient import finite_number
from grl.ramp import Ramp
from grl.schedules import ConstantSchedule, Schedule
from grl.torch_impl._internals import is_jit_tracing
from grl.torch_impl.coefficient import Coefficient
from grl.torch_impl.coefficient import as_coefficient as _as_coefficient
from grl.torch_impl.function import gradient_reversal

__all__ = ["GRL"]

T = TypeVar("T")


class GRL(Ramp[Coefficient], nn.Module):
    """Gradient reversal layer: y = x forward, x̄ = −λ·ȳ backward, with λ kept in the layer.

    λ and the step count are buffers, `coefficient` (float64, 0-d) and `step_count` (int64, 0-d). So every tool that
    carries a module's buffers carries them: `state_dict`, `torch.distributed.checkpoint`, FSDP2, DDP,
    `torch.func.functional_call`, `AveragedModel`, `torch.export`, safetensors. There are no parameters.
    Only the device of the buffers follows the module. Their dtype and values stay under `.half()`, `.to(dtype)` and
    `.to_empty(...)`, and they stay on the CPU where the module goes to a device that cannot hold them (MPS has no
    float64, "meta" has no values).

    A forward call uses the λ of the buffer, whoever wrote it, and never synchronises with a device. Reading `coeff` and
    calling `step` do, if the buffer lies on an accelerator. Changing λ recompiles nothing.

    The backward pass uses the λ of the forward call. If activation checkpointing runs the forward call again
    (`use_reentrant=True`, or around a compiled part), the recomputation uses the current λ: call `step` after backward.
    A forward call that `torch.compile` compiled raises in its backward pass if λ was changed in between.

    Args:
        coeff: λ (see `gradient_reversal`), or a schedule `step -> λ` such as `grl.DannSchedule(total_steps)`. A tensor
            is kept as it is, with its dtype, and not copied.
        persistent: whether λ and the step count are in the `state_dict`.

    Raises:
        TypeError: λ is a bool, a string, None or complex.
        ValueError: λ is not finite.

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

    coefficient: Tensor
    step_count: Tensor

    def __init__(self, coeff: Coefficient | Schedule = 1.0, *, persistent: bool = True) -> None:
        """Make a layer.

        Args:
            coeff: λ, or a schedule `step -> λ`.
            persistent: whether λ and the step count are in the `state_dict`.
        """
        super().__init__()
        self._schedule = None
        self._number: float | None = 0.0
        self._calls = [0]  # of `forward` in training, before the first `step`; empty once they are not counted
        with torch.inference_mode(False):
            self.register_buffer("coefficient", _zero(torch.float64), persistent)
            self.register_buffer("step_count", _zero(torch.int64), persistent)
        self._set(coeff, 0)

    if TYPE_CHECKING:

        def __call__(self, x: T, coeff: Coefficient | None = None, reverse: bool = True) -> T:
            """Call `forward`."""
            ...

    def forward(self, x: T, coeff: Coefficient | None = None, reverse: bool = True) -> T:
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
        if coeff is None:
            coeff = self._buffers["coefficient"]
            if not is_dynamo_compiling():
                # A number is cheaper than a tensor, and reading one from the CPU waits for nothing.
                if (
                    type(coeff) is Tensor
                    and self._number is not None
                    and coeff.is_cpu
                    and not is_jit_tracing()
                    and (type(x) is Tensor or not isinstance(x, torch.fx.Proxy))
                ):
                    try:  # noqa: SIM105  # `contextlib.suppress` would cost a microsecond
                        coeff = coeff.item()
                    except RuntimeError:  # `vmap` and `make_fx` want the tensor
                        pass
                if self._schedule is not None and self._calls:
                    self._warn_unless_stepped()
        return gradient_reversal(x, coeff)  # type: ignore[arg-type]  # the buffer is never None

    def reset_parameters(self) -> None:
        """Set the step count to 0 and λ to what it was set to; deferred initialisation calls this after `to_empty`."""
        self._write_step(0)
        start = self._number if self._schedule is None else self._schedule
        if start is not None:  # a tensor λ stays as it is
            self._set(start, 0)

    def state_variables(self) -> dict[str, Tensor]:
        """Return the buffers of λ and of the step count under the names that both backends have for them."""
        return {"coeff": self.coefficient, "step": self.step_count}

    def extra_repr(self) -> str:
        """λ, and the schedule with its step count if there is one."""
        try:
            return self._shown()
        except RuntimeError:  # inside a transformation a buffer has no value to show
            return f"coeff={self.coefficient}"

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "coeff":  # nn.Module would register a Parameter, a Buffer or a Module under this name instead
            _uncompiled(partial(object.__setattr__, self, name, value))
            return
        super().__setattr__(name, value)
        # `from_pretrained` (transformers 5) puts uninitialised memory in place of each buffer that its file lacks. It
        # marks the buffers that it has loaded, and marks the module once the module should have filled the rest.
        marked = name == "_is_hf_initialized" and "transformers.initialization" in sys.modules
        if marked and not all(getattr(buffer, name, False) for buffer in self.buffers()):
            self.reset_parameters()

    def _warn_unless_stepped(self) -> None:
        if not (self.training and torch.is_grad_enabled()):
            return
        self._calls[0] += 1
        if self._calls[0] < _ENOUGH_CALLS:
            return
        self._calls.clear()
        if isinstance(self._schedule, ConstantSchedule) or not self.coefficient.is_cpu:
            return
        with contextlib.suppress(RuntimeError):  # inside a transformation a buffer has no value to read
            coeff = self._read_coeff()
            if self._read_step() == 0:
                message = f"λ is still {coeff} after {_ENOUGH_CALLS} calls; nobody calls layer.step()."
                warnings.warn(message, stacklevel=5)  # the caller of `layer(x)`

    def _read_coeff(self) -> Coefficient:
        coeff = self.coefficient
        return coeff if self._number is None or coeff.ndim else coeff.item()

    def step(self) -> None:
        """Advance the step count by one, and λ with it if the layer has a schedule. Nothing else advances them.

        Inside compiled code this is a graph break. Call it after the backward pass.
        """
        _uncompiled(super().step)

    def _write_coeff(self, value: Coefficient) -> None:
        coeff = _as_coefficient(value)
        if isinstance(coeff, Tensor):
            self._number, self.coefficient = None, coeff.detach()
            return
        if self._number is None or self.coefficient.is_meta:  # a tensor of the user's is not written to
            self.coefficient = _zero(torch.float64).to(_home(self.coefficient.device))
        self._number = coeff  # for `reset_parameters` alone: λ is what the buffer holds
        self.coefficient.fill_(coeff)

    def _read_step(self) -> int:
        return int(self.step_count)

    def _write_step(self, count: int) -> None:
        if self.step_count.is_meta:
            self.step_count = _zero(torch.int64)
        self.step_count.fill_(count)
        self._calls.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        self._buffers.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        for name, buffer in before.items():
            # The device is that of another tensor: MPS raises for float64, and `to_empty` forgets the values.
            home = _home(fn(torch.zeros((), device=buffer.device)).device)
            moved = fn(buffer) if buffer.device == home else buffer
            same = moved is buffer or buffer.is_meta
            self._buffers[name] = moved if same else buffer.to(home)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = {f"{prefix}{name}": name for name in self._buffers if name not in self._non_persistent_buffers_set}
        for name, older in _OLDER_NAMES.items():
            if prefix + name in names and prefix + older in state_dict:
                state_dict[prefix + name] = state_dict.pop(prefix + older)
        try:
            for key in names.keys() & state_dict.keys():
                state_dict[key] = _CHECKS[names[key]](state_dict[key])
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{prefix}{error}")
            for key in names:
                state_dict.pop(key, None)
        coeff = state_dict.get(f"{prefix}coefficient")
        if f"{prefix}coefficient" in names and coeff is not None:
            self._make_room_for(coeff)
        # Without its keys, a `state_dict` is that of a model with an identity in this place: λ and the count stay.
        absent = names.keys() - state_dict.keys()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing_keys[:] = [key for key in missing_keys if key not in absent]

    def _make_room_for(self, coeff: Tensor) -> None:
        """Replace the buffer by one of this shape, unless it is a number as λ is."""
        if self._number is None or coeff.ndim:
            self.coefficient = torch.empty_like(coeff, device=_home(self.coefficient.device))
            self._number = None


def _call(function: Callable[[], None]) -> None:
    function()


# A compiled graph loses what it writes to a float64 buffer of no dimension (torch 2.13, aot_eager and Inductor).
_uncompiled = torch.compiler.disable(_call, reason="λ and the step count change in eager code")
_ENOUGH_CALLS = 100
_OLDER_NAMES = {"coefficient": "coeff", "step_count": "step"}


def _zero(dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype, device="cpu")  # whatever the default device is, even "meta"


def _home(device: torch.device) -> torch.device:
    """This device, or the CPU in place of one that holds no float64 or no values."""
    return torch.device("cpu") if device.type in ("meta", "mps") else device


def _checked_coeff(value: Any) -> Tensor:
    """λ from a `state_dict`."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta:
        finite_number(value.item())
    coeff = _as_coefficient(value)
    return coeff.detach() if isinstance(coeff, Tensor) else torch.tensor(coeff, dtype=torch.float64)


def _checked_step(value: Any) -> Tensor:
    """The step count from a `state_dict`."""
    if isinstance(value, Tensor) and value.is_meta:
        return value
    number = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise TypeError(f"step: got {value!r}; expected an integer from 0.")
    return value if isinstance(value, Tensor) else torch.tensor(number)


_CHECKS = {"coefficient": _checked_coeff, "step_count": _checked_step}
