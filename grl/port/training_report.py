"""The report of `compare_training`: what it found, shown as a table, written as JSON, drawn as a picture."""

from __future__ import annotations

import json
from os import PathLike, fspath

from grl.port.findings import Gaps, TrainingFindings

__all__ = ["Gaps", "TrainingReport"]


class TrainingReport(TrainingFindings):
    """What `compare_training` found; `str` of it is a sentence.

    Args:
        steps: the number of steps.
        bug_step: the first step, from 1, after which the gap is larger than rounding; None if there is none.
        causes: of that gap, the likeliest first.
        reason: the first divergence in that step, in words.
        losses: by "torch", "jax", "torch float64" and "jax float64": the loss of each step before its update.
        gaps: by "losses", "parameters" and "statistics".
        notes: what was assumed.
    """

    def show(self) -> None:
        """Print a table of some of the steps, the notes and the sentence; needs rich."""
        from grl.port.pictures import print_report, training_table

        print_report(training_table(self), self.notes, str(self))

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write all of it to a JSON file; numbers that are not finite become null."""
        with open(fspath(path), "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw how far the trainings are apart by step, beside the growth of rounding; needs matplotlib.

        Raises:
            WriteError: the file cannot be written.
        """
        from grl.port.pictures import draw_training

        draw_training(self, path)
