"""All settings of an experiment, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from grl.datasets import ON_BAD_DATA
from grl.errors import GrlError
from grl.schedules import ConstantSchedule, DannSchedule, LinearSchedule, Schedule

__all__ = ["BACKENDS", "METHODS", "Config", "ConfigError", "shown"]

BACKENDS = ("torch", "jax")
METHODS = ("source-only", "dann", "target")

# More is a slip of the hand; the permutations of a batch alone would fill the memory.
_LARGEST = {"batch_size": 10**6, **dict.fromkeys(("steps", "timeout", "log_every", "checkpoint_every"), 10**9)}
_CHOICES = {
    "backend": BACKENDS,
    "method": METHODS,
    "optimizer": ("adam", "sgd"),
    "dtype": ("float32", "float64"),
    "sharding": ("replicated", "fsdp"),
    "on_nan": ("stop", "skip"),
    "on_bad_data": ON_BAD_DATA,
}

_SMALLEST = {
    **dict.fromkeys(("steps", "batch_size", "timeout", "log_every", "checkpoint_every"), 1),
    **dict.fromkeys(("seed", "data_memory"), 0),
}


class ConfigError(GrlError, ValueError):
    """A setting cannot be used. The message is one sentence: what came, and what is accepted."""


_OPTIONAL = ("data", "start", "classifier_learning_rate", "clip_norm", "checkpoint_every")  # None: without


@dataclass(frozen=True)
class Config:
    """All settings of a run; `dataclasses.asdict` of it is config.json.

    Args:
        task: a name of `grl.datasets.TASKS`.
        data: the path of an .npz file or a folder (see `grl.datasets.load_path`), which then takes the task's place.
        data_memory: MiB of `data` that stay in memory; the rest is read from files.
        on_bad_data: "stop" at a shard or an image of `data` that cannot be used, or "skip" it.
        backend: "torch" or "jax".
        method: "source-only", "dann" or "target" (see `grl.experiment.train`).
        steps: the number of updates.
        batch_size: samples a step, of each domain.
        optimizer: "adam" or "sgd".
        learning_rate: of the feature extractor, at the start.
        classifier_learning_rate: of both classifiers, at the start; None: the same.
        momentum: of "sgd".
        decay: d in the learning rates' division by (1 + d·p)^0.75 at progress p = step / steps.
        clip_norm: the largest global norm of a gradient; None: no clipping.
        schedule: λ over the steps: "dann[:GAMMA]", "linear[:START:END]" (0 to 1), "constant[:VALUE]" (1).
        seed: draws the initial weights and the batches; not the data.
        device: the framework's name of it: "cpu", "cuda", "cuda:1", "gpu", ... In JAX a name without a number is all of
            that kind, which share the batches.
        dtype: "float32" or "float64".
        sharding: where several processes or devices train: "replicated": each holds the whole model; "fsdp": its share.
        timeout: seconds that one process of several waits for another.
        log_every: steps from one record of the history to the next.
        checkpoint_every: steps from one checkpoint to the next; None: none but that of a run that is asked to stop.
        on_nan: what to do about a step with a loss that is not finite: "stop", or "skip" its update and go on.
        tensorboard: whether to write event files beside metrics.jsonl.
        start: the path of a model.safetensors to start from; None: weights drawn from the seed.
        channels: the channels of the convolutions, for images.
        hidden: the sizes of the layers, for vectors.
        label_hidden: the hidden sizes of the label classifier.
        domain_hidden: the hidden sizes of the domain classifier.

    Raises:
        ConfigError: a setting cannot be used.

    Example:
        >>> Config(steps=100).rates(0)
        (0.002, 0.002)
    """

    task: str = "mnist-mnistm"
    data: str | None = None
    data_memory: int = 1024
    on_bad_data: str = "stop"
    backend: str = "torch"
    method: str = "dann"
    steps: int = 2500
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    classifier_learning_rate: float | None = None
    momentum: float = 0.9
    decay: float = 10.0
    clip_norm: float | None = None
    schedule: str = "dann"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    sharding: str = "replicated"
    timeout: int = 300
    log_every: int = 50
    checkpoint_every: int | None = None
    on_nan: str = "stop"
    tensorboard: bool = False
    start: str | None = None
    channels: tuple[int, ...] = (32, 48)
    hidden: tuple[int, ...] = (15,)
    label_hidden: tuple[int, ...] = (100,)
    domain_hidden: tuple[int, ...] = (100, 100)

    @classmethod
    def recommended(cls, task: str, **settings: Any) -> Config:
        """Return the settings that reach the published figures on a task.

        Args:
            task: a name of `grl.datasets.TASKS`; another one gets the defaults.
            settings: what to set otherwise; a None leaves the recommendation.

        Raises:
            ConfigError: a setting cannot be used.
        """
        chosen = {name: value for name, value in settings.items() if value is not None}
        return cls(**{"task": task, **_RECOMMENDED.get(task, {}), **chosen})

    @classmethod
    def from_json(cls, settings: Any) -> Config:
        """Return the settings that a file holds, all of them, as `dataclasses.asdict` gives them.

        Args:
            settings: what JSON holds; whoever wrote it.

        Raises:
            ConfigError: it is no object, a name is missing or unknown, or a setting cannot be used.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(settings, dict) or settings.keys() != names:
            wrong = shown(sorted(names ^ settings.keys())) if isinstance(settings, dict) else "something else"
            raise ConfigError(f"config: got {wrong} too few or too many; expected all settings, and no other.")
        return cls(**settings)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name}: got {shown(getattr(self, name))}; expected {' or '.join(map(repr, choices))}."
                )
        for name in ("task", "data", "schedule", "device", "start"):
            if self._is_given(name) and not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name}: got {shown(getattr(self, name))}; expected a text.")
        for name, least in _SMALLEST.items():
            if self._is_given(name):
                self._set(name, _integer(name, getattr(self, name), least))
        for name, most in _LARGEST.items():
            if self._is_given(name) and getattr(self, name) > most:
                raise ConfigError(f"{name}: got {shown(getattr(self, name))}; expected an integer from 1 to {most}.")
        for name in ("learning_rate", "classifier_learning_rate", "clip_norm"):
            if self._is_given(name):
                real = _real(name, getattr(self, name), "above 0 and up to 1e30", lambda value: 0 < value <= 1e30)
                self._set(name, real)
        if not isinstance(self.tensorboard, bool):
            raise ConfigError(f"tensorboard: got {shown(self.tensorboard)}; expected True or False.")
        self._set("momentum", _real("momentum", self.momentum, "from 0 to below 1", lambda value: 0 <= value < 1))
        self._set("decay", _real("decay", self.decay, "from 0", lambda value: value >= 0))
        for name in ("channels", "hidden", "label_hidden", "domain_hidden"):
            self._set(name, _sizes(name, getattr(self, name)))
        self.coeff(0)  # a wrong schedule shows here

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _is_given(self, name: str) -> bool:
        return getattr(self, name) is not None or name not in _OPTIONAL

    def coeff(self, step: int) -> float:
        """λ of a step, counted from 0; 0 throughout where the method does not adapt."""
        schedule = _parse_schedule(self.schedule, self.steps)
        return float(schedule(step)) if self.method == "dann" else 0.0

    def rates(self, step: int) -> tuple[float, float]:
        """The learning rates of the feature extractor and of the classifiers at a step, counted from 0."""
        divisor = (1 + self.decay * step / self.steps) ** 0.75
        own = self.learning_rate if self.classifier_learning_rate is None else self.classifier_learning_rate
        return self.learning_rate / divisor, own / divisor


_RECOMMENDED: dict[str, dict[str, Any]] = {
    "moons": {
        "steps": 1000,
        "learning_rate": 2e-2,
        "hidden": (50, 50),
        "label_hidden": (),
        "domain_hidden": (50,),
    },
}


def shown(value: Any) -> str:
    """Return what came, for a message: whoever wrote a file may have written a long text into it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]} …"


def _parse_schedule(text: str, steps: int) -> Schedule:
    kind, *parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
        if kind == "dann" and len(numbers) <= 1:
            return DannSchedule(steps, *numbers)
        if kind == "linear" and len(numbers) in (0, 2):
            return LinearSchedule(steps, *(numbers or (0.0, 1.0)))
        if kind == "constant" and len(numbers) <= 1:
            return ConstantSchedule(*(numbers or (1.0,)))
    except ValueError:
        pass  # no number, or not a finite one: the sentence below says what is accepted
    raise ConfigError(f"schedule: got {shown(text)}; expected dann[:GAMMA], linear[:START:END] or constant[:VALUE].")


def _integer(name: str, value: Any, smallest: int) -> int:
    """An int, whatever kind of integer came: JSON knows no NumPy."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < smallest:
        raise ConfigError(f"{name}: got {shown(value)}; expected an integer from {smallest}.")
    return int(value)


def _real(name: str, value: Any, accepted: str, accepts: Callable[[float], bool]) -> float:
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        with suppress(OverflowError):  # an integer that no float holds
            number = float(value)
    if not math.isfinite(number) or not accepts(number):
        raise ConfigError(f"{name}: got {shown(value)}; expected a finite number {accepted}.")
    return number


def _sizes(name: str, sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise ConfigError(f"{name}: got {shown(sizes)}; expected one size for each layer.")
    if not sizes and name in ("channels", "hidden"):
        raise ConfigError(f"{name}: got none; expected one size for each layer.")
    return tuple(_integer(name, size, 1) for size in sizes)
