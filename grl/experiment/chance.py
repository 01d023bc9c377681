"""The explanation of a domain loss that stays at chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grl.experiment.record import Record

__all__ = ["explain_chance"]


def explain_chance(history: Sequence[Record]) -> str | None:
    """Explain a domain loss that stayed within 1 % of ln 2 for at least 100 steps and a fifth of the run.

    Args:
        history: the records, as in metrics.json; `step` and `domain_loss` are read.

    Returns:
        One or two sentences; None if there is nothing to explain.
    """
    longest: tuple[int, int] = (0, 0)  # the first record of the longest stay, and the first one after it
    start = 0
    for end in range(1, len(history) + 1):
        loss = history[end - 1]["domain_loss"]
        if loss is None or abs(loss - math.log(2)) > 0.01 * math.log(2):
            start = end
        elif end - start > longest[1] - longest[0]:
            longest = start, end
    start, end = longest
    if start == end:
        return None
    first, last = history[start]["step"], history[end - 1]["step"]
    if last - first < max(100, history[-1]["step"] / 5):
        return None
    seen = f"From step {first} to {last} the domain loss stayed within 1 % of ln 2 = 0.693, which is chance"
    if start == 0:
        return (
            f"{seen}, and so it was from the first record on: the domain classifier learns nothing, since its features "
            "carry nothing of the domain, its learning rate is too low, or its input is blocked. Compare with "
            "--schedule constant:-1, where it has to fall."
        )
    return (
        f"{seen}: after it had been elsewhere, the domain classifier can no longer tell the domains apart. That is the "
        "goal, as long as the source accuracy holds; if that falls too, lower λ (--schedule linear:0:0.3)."
    )
