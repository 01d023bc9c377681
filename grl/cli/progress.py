"""How a run is followed: bars in a terminal, plain lines now and then anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeRemaining
from rich.text import Text

from grl.experiment import Update

__all__ = ["Follower", "describe", "make_console"]

_LINES = 10  # of each run, where there is no terminal


def make_console(silent: bool = False) -> Console:
    """Return the console of all commands' output, or a silent one: colours and bars only where stdout is a terminal."""
    return Console(highlight=False, soft_wrap=False, file=StringIO() if silent else None)


def describe(update: Update) -> str:
    """Return the losses (the domain loss beside its value at chance, ln 2), λ and accuracy of the latest steps.

    And the step of the newest checkpoint, where there is one.
    """
    parts = [f"label loss {_number(update.label_loss)}"]
    if update.domain_loss is not None:
        parts.append(f"domain loss {_number(update.domain_loss)} (ln 2 = {math.log(2):.4f})")
        parts.append(f"λ {update.coeff:.3f}")
    parts.append(f"accuracy {update.source_accuracy:.3f}")
    if update.checkpoint is not None:
        parts.append(f"checkpoint at step {update.checkpoint}")
    return "  ".join(parts)


class Follower(AbstractContextManager["Follower"]):
    """Shows the runs of one command, one after the other.

    Args:
        console: where to; what is no terminal, or a dumb one, gets about ten plain lines a run.

    Example:
        >>> import sys
        >>> with Follower(Console(file=sys.stdout)) as follower:
        ...     follow = follower.run("dann, torch", steps=20)
        ...     follow(Update(20, 20, 0.5, None, 0.0, 0.75))
        dann, torch: step 20/20  label loss 0.5000  accuracy 0.750
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        live = console.is_terminal and not console.is_dumb_terminal and getattr(console.file, "isatty", bool)()
        self._bars = _Bars(console) if live else None

    def __enter__(self) -> Follower:
        (self._bars or nullcontext()).__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bars is not None:
            self._bars.status = Text()
            self._bars.__exit__(*exception)

    def run(self, label: str, steps: int) -> Callable[[Update], None]:
        """Announce a run of so many steps; return what it calls with each update."""
        if self._bars is None:
            return _Lines(self._console, label)
        return self._bars.follow(label, steps)


class _Bars(Progress):
    """One bar a run, and below them the losses of the run that is going on."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(None),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemaining(elapsed_when_finished=True),
        )
        self.status = Text()
        super().__init__(*columns, console=console, expand=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield self.status

    def follow(self, label: str, steps: int) -> Callable[[Update], None]:
        bar = self.add_task(label, total=steps, start=False)  # pulses while the backend compiles
        self.status = Text("preparing the first steps …", style="dim")

        def follow(update: Update) -> None:
            self.start_task(bar)  # only now, so that the time left is reckoned without the compilation
            self.status = Text(describe(update))
            self.update(bar, completed=update.step)

        return follow


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} steps/s", style="progress.data.speed")


class _Lines:
    """Prints the first update, the last one, and one for each tenth of the steps between."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._started: tuple[float, int] | None = None  # time and step of the first update: compilation is over by then
        self._due = 0.0

    def __call__(self, update: Update) -> None:
        now = time.perf_counter()
        since, start = self._started = self._started or (now, update.step)
        if update.step < self._due and update.step < update.steps:
            return
        self._due = max(self._due, update.step) + update.steps / _LINES
        line = f"{self._label}: step {update.step}/{update.steps}  {describe(update)}"
        if update.step > start:
            speed = (update.step - start) / (now - since)
            left = timedelta(seconds=round((update.steps - update.step) / speed))
            line += f"  {speed:.1f} steps/s  {left} left"
        self._console.print(line, soft_wrap=True, markup=False)


def _number(number: float | None) -> str:
    return "not finite" if number is None or not math.isfinite(number) else f"{number:.4f}"
