"""How one setting of an experiment is declared: what it means, and which values it accepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Protocol

from grl.errors import GrlError

__all__ = [
    "Check",
    "Choice",
    "ConfigError",
    "Flag",
    "Number",
    "Panel",
    "Setting",
    "Sizes",
    "Text",
    "Value",
    "Whole",
    "shown",
]

Value = str | int | float | bool | tuple[int, ...] | None
"""The value of a setting, as `Config` keeps it and JSON can hold it."""


class ConfigError(GrlError, ValueError):
    """A setting cannot be used. The message is one sentence: the value, and what is expected."""


class Panel(Enum):
    """The panels of `grl train --help`, in their order."""

    WHAT = "What to train"
    WHERE = "Where to compute"
    HOW = "How to train"
    OUTPUT = "What to write"
    TROUBLE = "What to do when something goes wrong"


class Check(Protocol):
    """Tests the value of a setting and brings it into the form that `Config` keeps."""

    @property
    def metavar(self) -> str | None:
        """The placeholder of a value in a help text; None for a flag, which takes none."""

    def __call__(self, name: str, value: object) -> Value:
        """Return the value in its final form.

        Raises:
            ConfigError: the value cannot be used; the message begins with `name`.
        """


@dataclass(frozen=True)
class Setting:
    """One setting. It stands in the annotation of its field in `Config`, which is the only place that declares it.

    Args:
        check: accepts or refuses a value. A setting whose default is None also accepts None.
        help: what the setting does, for a help text.
        panel: its panel in `grl train --help`; None if only Python can set it.
        default: the default in words, where the value itself says too little.
        option: the name of the option without dashes; by default the name of the field.
        may_change_on_resume: whether `grl train --resume` accepts it.
    """

    check: Check
    help: str
    panel: Panel | None = None
    default: str | None = None
    option: str | None = None
    may_change_on_resume: bool = False

    def flag(self, field: str) -> str:
        """Return the option on the command line of the setting that this field holds."""
        return f"--{self.option or field.replace('_', '-')}"


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    choices: Sequence[str]

    @property
    def metavar(self) -> str:
        """All choices."""
        return "|".join(self.choices)

    def __call__(self, name: str, value: object) -> str:
        """Return the word; see `Check`."""
        if not isinstance(value, str) or value not in self.choices:
            raise ConfigError(f"{name}: got {shown(value)}; expected {' or '.join(map(repr, self.choices))}.")
        return value


@dataclass(frozen=True)
class Text:
    """Any text."""

    metavar: str

    def __call__(self, name: str, value: object) -> str:
        """Return the text; see `Check`."""
        if not isinstance(value, str):
            raise ConfigError(f"{name}: got {shown(value)}; expected text.")
        return value


@dataclass(frozen=True)
class Flag:
    """True or False."""

    metavar = None

    def __call__(self, name: str, value: object) -> bool:
        """Return the flag; see `Check`."""
        if not isinstance(value, bool):
            raise ConfigError(f"{name}: got {shown(value)}; expected True or False.")
        return value


@dataclass(frozen=True)
class Whole:
    """An integer of any type, which becomes an int: JSON has no NumPy integers.

    Args:
        smallest: the smallest one accepted.
        largest: the largest one accepted; None: there is none.
    """

    smallest: int
    largest: int | None = None
    metavar = "N"

    def __call__(self, name: str, value: object) -> int:
        """Return the integer; see `Check`."""
        if not isinstance(value, bool) and isinstance(value, Integral):
            integer = int(value)
            if integer >= self.smallest and (self.largest is None or integer <= self.largest):
                return integer
        limit = "" if self.largest is None else f" to {self.largest}"
        raise ConfigError(f"{name}: got {shown(value)}; expected an integer from {self.smallest}{limit}.")


@dataclass(frozen=True)
class Number:
    """A finite real number of any type, which becomes a float.

    Args:
        range: the range in words.
        is_in_range: whether a finite number is in the range.
    """

    range: str
    is_in_range: Callable[[float], bool]
    metavar = "X"

    def __call__(self, name: str, value: object) -> float:
        """Return the number; see `Check`."""
        number = math.nan
        if not isinstance(value, bool) and isinstance(value, Real):
            with suppress(OverflowError):  # an integer too large for a float
                number = float(value)
        if not math.isfinite(number) or not self.is_in_range(number):
            raise ConfigError(f"{name}: got {shown(value)}; expected a finite number {self.range}.")
        return number


@dataclass(frozen=True)
class Sizes:
    """The sizes of layers, one positive integer each.

    Args:
        may_be_empty: whether there may be no layer at all.
    """

    may_be_empty: bool = False
    metavar = "N …"

    def __call__(self, name: str, value: object) -> tuple[int, ...]:
        """Return the sizes; see `Check`."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{name}: got {shown(value)}; expected one size for each layer.")
        if not (value or self.may_be_empty):
            raise ConfigError(f"{name}: got none; expected one size for each layer.")
        return tuple(Whole(1)(name, size) for size in value)


def shown(value: object) -> str:
    """Return a value as a message shows it, cut after 100 characters: a damaged file may hold a long text."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]} …"
