"""The progress of a run: bars in a terminal, and a plain line now and then anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from io import StringIO
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeRemaining
from rich.text import Text

from grl.experiment import Update

__all__ = ["Follower", "describe", "make_console"]

_LINES = 10  # for each run, where there is no terminal


def make_console(silent: bool = False) -> Console:
    """Return the console for a command's output, or a silent one. Only a terminal gets colours and bars."""
    return Console(highlight=False, soft_wrap=False, file=StringIO() if silent else None)


def describe(update: Update) -> str:
    """Return the losses, λ and the accuracy of the latest steps, and the step of the newest checkpoint, in one line.

    The domain loss stands beside its value at chance, ln 2.
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
        console: the output. Anything but a terminal, and a dumb terminal, gets about ten plain lines a run.

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.status = Text()
            self._bars.__exit__(kind, error, trace)

    def run(self, label: str, steps: int) -> Callable[[Update], None]:
        """Announce a run of so many steps; return the function to call with each of its updates."""
        if self._bars is None:
            return _Lines(self._console, label)
        return self._bars.follow(label, steps)

    def refresh(self) -> None:
        """Draw the bars now; they are drawn ten times a second by themselves."""
        if self._bars is not None:
            self._bars.refresh()


class _Bars(Progress):
    """One bar for each run, and below them the losses of the current run."""

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
        bar = self.add_task(label, total=steps, start=False)  # it pulses while the backend compiles
        self.status = Text("preparing the first steps …", style="dim")

        def follow(update: Update) -> None:
            self.start_task(bar)  # only now: the time left is estimated without the compilation
            self.status = Text(describe(update))
            self.update(bar, completed=update.step)

        return follow


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} steps/s", style="progress.data.speed")


class _Lines:
    """Prints the first update, the last one, and one for each tenth of the steps between them."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._started: tuple[float, int] | None = None  # time and step of the first update, after the compilation
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
