"""All settings of an experiment, each declared in one place and checked when a `Config` is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Annotated, Any, get_type_hints

from grl.backends import BACKENDS
from grl.datasets import ON_BAD_DATA, TASKS
from grl.experiment.ramp import Ramp, parse_ramp
from grl.experiment.setting import (
    Choice,
    ConfigError,
    Flag,
    Number,
    Panel,
    Setting,
    Sizes,
    Text,
    Value,
    Whole,
    shown,
)
from grl.schedules import ConstantSchedule

__all__ = ["BACKENDS", "METHODS", "Config", "ConfigError", "shown"]

METHODS = ("source-only", "dann", "target")

# Larger values are almost certainly typos; drawing the batches alone would exhaust memory.
_STEPS = Whole(1, 10**9)
_BATCH = Whole(1, 10**6)
_RATE = Number("above 0 and up to 1e30", lambda number: 0 < number <= 1e30)


@dataclass(frozen=True)
class Config:
    """All settings of a run; `dataclasses.asdict` of it is config.json.

    A field's annotation declares the setting: its type, what it does, its check and its place among the options of
    `grl train`. A new field is thereby checked, an option of the command line, and part of its help.

    Args:
        task: a name of `grl.datasets.TASKS`; the other settings have a default too. `grl train --help` prints what
            each of them does.

    Raises:
        ConfigError: a setting cannot be used.

    Example:
        >>> Config(steps=100).rates(0)
        (0.002, 0.002)
    """

    task: Annotated[
        str, Setting(Text("NAME"), f"The built-in task, as source-target: {', '.join(TASKS)}.", Panel.WHAT)
    ] = "mnist-mnistm"
    data: Annotated[
        str | None,
        Setting(
            Text("PATH"),
            "Your own data, instead of a built-in task. An .npz file with x_source, y_source and x_target; to score,"
            " also x_test and y_test; for --method target, also y_target. Images (N, C, H, W) and vectors (N, D) are"
            " used unscaled. Or a folder: of x_source.npy, y_source.npy and so on; of shards source-*.npz and"
            " test-*.npz (x, y) and target-*.npz (x); or of images source/CLASS/*.png, target/*.png,"
            " test/CLASS/*.png, which are scaled to 0 … 1.",
            Panel.WHAT,
            "none",
        ),
    ] = None
    data_memory: Annotated[
        int, Setting(Whole(0), "MiB of --data to keep in memory; the rest is read from disk.", Panel.WHERE)
    ] = 1024
    on_bad_data: Annotated[
        str,
        Setting(
            Choice(ON_BAD_DATA),
            "What to do about a shard or an image that cannot be used: stop, or skip it. metrics.json counts the"
            " skipped ones.",
            Panel.WHAT,
        ),
    ] = "stop"
    backend: Annotated[
        str, Setting(Choice(BACKENDS), "The framework that trains.", Panel.WHAT, may_change_on_resume=True)
    ] = "torch"
    method: Annotated[
        str,
        Setting(
            Choice(METHODS),
            "source-only: no adaptation, the lower bound. dann: adversarial training through gradient reversal."
            " target: training on labelled target data, the upper bound.",
            Panel.WHAT,
        ),
    ] = "dann"
    steps: Annotated[int, Setting(_STEPS, "The number of updates of the weights.", Panel.HOW)] = 2500
    batch_size: Annotated[
        int, Setting(_BATCH, "Samples per step from each domain; the smaller domain repeats.", Panel.HOW)
    ] = 64
    optimizer: Annotated[str, Setting(Choice(("adam", "sgd")), "The rule of the updates.", Panel.HOW)] = "adam"
    learning_rate: Annotated[
        float, Setting(_RATE, "Learning rate of the feature extractor at the first step.", Panel.HOW)
    ] = 2e-3
    classifier_learning_rate: Annotated[
        float | None,
        Setting(
            _RATE,
            "Learning rate of the label and domain classifiers at the first step.",
            Panel.HOW,
            "as --learning-rate",
        ),
    ] = None
    momentum: Annotated[
        float,
        Setting(
            Number("from 0 to below 1", lambda number: 0 <= number < 1),
            "Momentum of sgd, from 0 to below 1.",
            Panel.HOW,
        ),
    ] = 0.9
    decay: Annotated[
        float,
        Setting(
            Number("from 0", lambda number: number >= 0),
            "Both learning rates are divided by (1 + d·p)^0.75 at progress p from 0 to 1. This is d; 0 keeps them"
            " constant.",
            Panel.HOW,
        ),
    ] = 10.0
    clip_norm: Annotated[
        float | None,
        Setting(_RATE, "Scale gradients down to at most this global norm.", Panel.HOW, "no clipping"),
    ] = None
    schedule: Annotated[
        str,
        Setting(
            Text("RAMP"),
            "λ at progress p. dann or dann:GAMMA: 2/(1 + exp(-GAMMA·p)) - 1, with GAMMA 10 by default. linear or"
            " linear:START:END: a straight line, by default from 0 to 1. constant or constant:VALUE: by default 1.",
            Panel.HOW,
        ),
    ] = "dann"
    seed: Annotated[
        int,
        Setting(
            Whole(0),
            "Draws the initial weights and the batches, the same in both backends. The data do not depend on it.",
            Panel.WHAT,
        ),
    ] = 0
    device: Annotated[
        str,
        Setting(
            Text("NAME"),
            "The framework's name of the device: cpu, cuda, cuda:1, gpu … In JAX, a name without a number means all"
            " devices of that kind, and they share the batches. In PyTorch, each of several processes on a machine"
            " takes one.",
            Panel.WHERE,
            may_change_on_resume=True,
        ),
    ] = "cpu"
    dtype: Annotated[
        str,
        Setting(
            Choice(("float32", "float64")),
            "The floating-point precision; in float64 the backends agree to 1e-12.",
            Panel.WHERE,
        ),
    ] = "float32"
    sharding: Annotated[
        str,
        Setting(
            Choice(("replicated", "fsdp")),
            "What each of several processes or devices holds: the whole model (replicated; in PyTorch"
            " DistributedDataParallel) or its share of it (fsdp; in PyTorch fully_shard).",
            Panel.WHERE,
            may_change_on_resume=True,
        ),
    ] = "replicated"
    timeout: Annotated[
        int,
        Setting(
            _STEPS, "Seconds that one of several processes waits for another.", Panel.WHERE, may_change_on_resume=True
        ),
    ] = 300
    log_every: Annotated[
        int,
        Setting(
            _STEPS, "Steps from one record of the history to the next; each is a line of metrics.jsonl.", Panel.OUTPUT
        ),
    ] = 50
    checkpoint_every: Annotated[
        int | None,
        Setting(
            _STEPS,
            "Steps from one checkpoint to the next; the old one stays until the new one is complete. SIGTERM always"
            " saves one.",
            Panel.TROUBLE,
            "none",
        ),
    ] = None
    on_nan: Annotated[
        str,
        Setting(
            Choice(("stop", "skip")),
            "If a loss is not finite: stop with exit status 3, and keep the step's batch, weights and gradients"
            " (nan-*); or skip the update, and count it.",
            Panel.TROUBLE,
            may_change_on_resume=True,
        ),
    ] = "stop"
    tensorboard: Annotated[
        bool, Setting(Flag(), "Write event files for TensorBoard beside metrics.jsonl.", Panel.OUTPUT, "off")
    ] = False
    start: Annotated[
        str | None,
        Setting(
            Text("FILE"),
            "Start from the model.safetensors of a run of either backend, instead of weights drawn from the seed.",
            Panel.WHAT,
            "none",
            option="init",
        ),
    ] = None
    channels: Annotated[tuple[int, ...], Setting(Sizes(), "The channels of the convolutions, for images.")] = (32, 48)
    hidden: Annotated[tuple[int, ...], Setting(Sizes(), "The sizes of the layers, for vectors.")] = (15,)
    label_hidden: Annotated[
        tuple[int, ...], Setting(Sizes(may_be_empty=True), "The hidden sizes of the label classifier.")
    ] = (100,)
    domain_hidden: Annotated[
        tuple[int, ...], Setting(Sizes(may_be_empty=True), "The hidden sizes of the domain classifier.")
    ] = (100, 100)

    @classmethod
    def recommended(cls, task: str, **settings: Any) -> Config:
        """Return the settings that reach the published figures on a task.

        Args:
            task: a name of `grl.datasets.TASKS`; any other name gets the defaults.
            settings: values that replace the recommended ones; None keeps the recommendation.

        Raises:
            ConfigError: a setting cannot be used.
        """
        chosen = {name: value for name, value in settings.items() if value is not None}
        return cls(**{"task": task, **_RECOMMENDED.get(task, {}), **chosen})

    @classmethod
    def from_json(cls, settings: object) -> Config:
        """Return the settings that a file holds, all of them, as `dataclasses.asdict` gives them.

        Args:
            settings: the content of the file, which may be anything that JSON can hold.

        Raises:
            ConfigError: it is not an object, a name is missing or unknown, or a setting cannot be used.
        """
        if not isinstance(settings, dict):
            raise ConfigError(f"config: got {shown(settings)}; expected an object with exactly the fields of Config.")
        wrong = sorted({field.name for field in fields(cls)} ^ settings.keys())
        if wrong:
            names = ", ".join(shown(name) for name in wrong[:5])  # a damaged file may have any number
            raise ConfigError(f"config: missing or unknown settings: {names}; expected exactly the fields of Config.")
        return cls(**settings)

    @classmethod
    @cache
    def settings(cls) -> Mapping[str, Setting]:
        """Return the declaration of each setting, by the name of its field, in the order of the fields.

        Raises:
            TypeError: a field of a subclass declares no setting.
        """
        hints = get_type_hints(cls, include_extras=True)
        declared = {}
        for field in fields(cls):
            found = [entry for entry in getattr(hints[field.name], "__metadata__", ()) if isinstance(entry, Setting)]
            if len(found) != 1:
                raise TypeError(f"{cls.__name__}.{field.name}: got {len(found)} Setting; expected one.")
            declared[field.name] = found[0]
        return declared

    def __post_init__(self) -> None:
        settings = self.settings()
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value is None and field.default is None):
                object.__setattr__(self, field.name, settings[field.name].check(field.name, value))
        parse_ramp(self.schedule, self.steps)  # refuses a wrong one now, whatever the method

    @cached_property
    def ramp(self) -> Ramp:
        """λ as a function of the step, counted from 0; 0 throughout where the method does not adapt."""
        return parse_ramp(self.schedule, self.steps) if self.method == "dann" else ConstantSchedule(0.0)

    def coeff(self, step: int) -> float:
        """λ of a step, counted from 0; 0 throughout where the method does not adapt."""
        return float(self.ramp(step))

    def rates(self, step: int) -> tuple[float, float]:
        """The learning rates of the feature extractor and of the classifiers at a step, counted from 0."""
        divisor = (1 + self.decay * step / self.steps) ** 0.75
        classifiers = self.classifier_learning_rate
        return self.learning_rate / divisor, (self.learning_rate if classifiers is None else classifiers) / divisor


_RECOMMENDED: dict[str, dict[str, Value]] = {
    "moons": {
        "steps": 1000,
        "learning_rate": 2e-2,
        "hidden": (50, 50),
        "label_hidden": (),
        "domain_hidden": (50,),
    },
}
