"""The settings of a run: the device, and the amount of every measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["CLASSES", "COEFF", "Group", "ResNetSize", "Settings", "Tell"]

COEFF = 0.7
"""λ of all timings: not a power of two, so that rounding a gradient twice changes it."""

CLASSES = 31
"""Classes of the ResNet's label classifier: those of Office-31, a common data set for such networks."""

T = TypeVar("T")

Tell = Callable[[int, int, str], None]
"""The progress callback of a benchmark: (done, total, name of the current item)."""


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
class ResNetSize:
    """The large network of `step`.

    Args:
        name: what the tables call it.
        blocks: the number of bottleneck blocks of each stage.
        width: channels of the stem; each stage has twice those of the one before.
        side: of the square images, in pixels.
        batch: images of each domain.
    """

    name: str
    blocks: tuple[int, ...]
    width: int
    side: int
    batch: int


@dataclass(frozen=True)
class Settings:
    """The effort of a run.

    Args:
        device: "cpu" or "cuda".
        effort: "full"; "quick", under two minutes on two cores; "smoke", seconds, which runs all paths and whose
            figures mean nothing.
    """

    device: str = "cpu"
    effort: str = "full"

    def _of(self, full: T, quick: T, smoke: T) -> T:
        return {"full": full, "quick": quick, "smoke": smoke}[self.effort]

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured."""
        return self.device == "cuda"

    @property
    def sample_ns(self) -> float:
        """The minimum duration of a sample, in ns: calls are repeated to fill it."""
        return self._of(200e3, 50e3, 10e3)

    @property
    def rounds(self) -> tuple[int, int]:
        """The fewest and the most rounds of a group."""
        return self._of((7, 41), (5, 9), (2, 2))

    @property
    def group_seconds(self) -> float:
        """The time limit of one group's rounds, once the minimum number is done."""
        return self._of(5.0, 0.5, 0.1)

    @property
    def article_iterations(self) -> int:
        """Calls of each form in the article's table; there it is 10,000."""
        return self._of(10_000, 1_000, 40)

    @property
    def scale_powers(self) -> list[int]:
        """The sizes of `scale`: powers of 2, in bytes."""
        return self._of(list(range(6, 33 if self.on_gpu else 29, 2)), [6, 8, 20, 23], [6, 8, 10, 12])

    @property
    def scale_layers(self) -> list[int]:
        """The numbers of layers in one model."""
        return self._of([1, 2, 4, 8, 16, 32, 64], [1, 4, 16], [1, 2])

    @property
    def layer_size(self) -> int:
        """The bytes of `layer`."""
        return self._of(2**25, 2**22, 2**10)

    @property
    def layer_rounds(self) -> tuple[int, int]:
        """The fewest and the most rounds of `layer`: as many as show one per cent on a CPU that others use."""
        return self._of((201, 201), (5, 9), (2, 2))

    @property
    def step_modes(self) -> list[str]:
        """Framework and mode of each training step that is timed."""
        every = ["torch eager", "jax jit", "torch compiled", "jax scan"]
        return self._of(every, every[:2], [every[0], every[3]])

    @property
    def resnet(self) -> ResNetSize | None:
        """The large network whose steps are timed too; a CPU would take minutes for one step of a ResNet-50."""
        full = ResNetSize("ResNet-50, 224×224", (3, 4, 6, 3), 64, 224, 32) if self.on_gpu else None
        return self._of(full, None, ResNetSize("ResNet, 32×32", (1, 1), 8, 32, 4))

    @property
    def step_rounds(self) -> tuple[int, int]:
        """The fewest and the most rounds of training steps: as many as show one per cent on a CPU that others use."""
        return self._of((41, 41) if self.on_gpu else (151, 151), (5, 5), (2, 2))

    @property
    def groups(self) -> list[Group]:
        """The tables of `op`."""
        if self.effort == "smoke":
            return [Group(2**10), Group(2**10, coeff="sample")]
        if self.effort == "quick":
            kinds = [Group(2**8, coeff="tensor", few=True), Group(2**14, "bfloat16", few=True)]
            return [Group(2**8), *kinds, Group(2**22, few=True)]
        number = [Group(2**power) for power in (6, 8, 14, 20, 25)]
        largest = (28, 30, 32) if self.on_gpu else (28,)
        number += [Group(2**power, few=not self.on_gpu) for power in largest]
        others = [("bfloat16", "number"), ("float16", "number"), ("float32", "tensor"), ("float32", "sample")]
        return number + [Group(2**power, dtype, coeff) for dtype, coeff in others for power in (8, 25)]
