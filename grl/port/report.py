"""The report of `compare`: what it found, shown as a table, written as JSON, drawn as a picture."""

from __future__ import annotations

import json
from os import PathLike, fspath

from grl.port.findings import Divergence, Findings, Row

__all__ = ["Divergence", "ParityReport", "Row"]


class ParityReport(Findings):
    """What `compare` found; `str` of it is a sentence.

    Args:
        rows: activations in the order of execution, with the output and the loss; gradients in the order of the
            backward pass; the optimisers' steps; statistics.
        first_divergence: the first array that differs by more than rounding; None if all agree.
        notes: what was assumed: the layout of images, dropouts that were switched off.
        unmatched_torch: names of PyTorch's parameters and statistics without a counterpart.
        unmatched_nnx: the same for nnx.
        frozen: names of PyTorch's parameters that have a gradient on only one side.
    """

    def show(self) -> None:
        """Print a table of all arrays, the notes and the sentence; needs rich."""
        from grl.port.pictures import print_report, table

        print_report(table(self.rows), self.notes, str(self))

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write all of it to a JSON file; numbers that are not finite become null."""
        with open(fspath(path), "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the differences by depth, on a log scale, beside what rounding explains; needs matplotlib.

        Raises:
            WriteError: the file cannot be written.
        """
        from grl.port.pictures import draw_parity

        draw_parity(self, path)
