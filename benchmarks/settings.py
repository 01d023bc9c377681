"""What a run measures: the device, and how much of everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["COEFF", "Group", "Settings", "Tell"]

COEFF = 0.7
"""λ of all timings: no power of two, so that a gradient that was rounded twice would show."""

Tell = Callable[[int, int, str], None]
"""How a benchmark tells its progress: (done, total, what comes now)."""


@dataclass(frozen=True)
class Group:
    """One table of `op`: all forms on the same inputs, timed in the same rounds.

    Args:
        size: bytes of x.
        dtype: its name in both frameworks.
        coeff: λ as a "number", a 0-d "tensor", or one value per "sample".
        few: only the forms that stand for their kind, since everything takes long at this size.
    """

    size: int
    dtype: str = "float32"
    coeff: str = "number"
    few: bool = False


@dataclass(frozen=True)
class Settings:
    """The effort of a run.

    Args:
        device: "cpu" or "cuda".
        effort: "full"; "quick", under two minutes on two cores; "smoke", seconds: all paths, no figures worth a look.
    """

    device: str = "cpu"
    effort: str = "full"

    def _of(self, full: Any, quick: Any, smoke: Any) -> Any:
        return {"full": full, "quick": quick, "smoke": smoke}[self.effort]

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured."""
        return self.device == "cuda"

    @property
    def sample_ns(self) -> float:
        """The least that one sample lasts, in ns: calls are repeated until they fill it."""
        return self._of(200e3, 50e3, 10e3)

    @property
    def rounds(self) -> tuple[int, int]:
        """The fewest and the most rounds of a group."""
        return self._of((7, 41), (5, 15), (2, 2))

    @property
    def group_seconds(self) -> float:
        """How long the rounds of one group may last once the fewest are done."""
        return self._of(5.0, 1.0, 0.1)

    @property
    def groups(self) -> list[Group]:
        """The tables of `op`."""
        if self.effort == "smoke":
            return [Group(2**10), Group(2**10, coeff="sample")]
        if self.effort == "quick":
            return [Group(2**8), Group(2**22), Group(2**8, "bfloat16"), Group(2**8, coeff="tensor")]
        number = [Group(2**power) for power in (6, 8, 14, 20, 25)]
        largest = (28, 30, 32) if self.on_gpu else (28,)
        number += [Group(2**power, few=not self.on_gpu) for power in largest]
        kinds = [("bfloat16", "number"), ("float16", "number"), ("float32", "tensor"), ("float32", "sample")]
        return number + [Group(2**power, dtype, coeff) for dtype, coeff in kinds for power in (8, 25)]
