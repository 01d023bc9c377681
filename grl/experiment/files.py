"""The names of the files that a run writes into its directory."""

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "EVENTS_PREFIX",
    "FAULT_BATCH",
    "FAULT_FILES",
    "FAULT_REPORT",
    "FAULT_WEIGHTS",
    "HISTORY",
    "METRICS",
    "STATE_PATTERN",
    "WEIGHTS",
    "state_name",
]

CONFIG = "config.json"
"""The settings of a finished run."""

METRICS = "metrics.json"
"""The figures of a finished run."""

WEIGHTS = "model.safetensors"
"""The weights of a finished run."""

HISTORY = "metrics.jsonl"
"""The losses of a run, appended line by line while it runs."""

EVENTS_PREFIX = "events.out.tfevents."
"""The beginning of the names of TensorBoard's event files."""

CHECKPOINT = "checkpoint.json"
"""The settings and counters of a run's checkpoint."""

STATE_PATTERN = "checkpoint-*.safetensors"
"""Matches the trainer's state in the checkpoint of any step (see `state_name`)."""

FAULT_BATCH = "nan-batch.npz"
"""The batch of a step whose loss or weights are not finite."""

FAULT_REPORT = "nan-report.json"
"""The losses and gradients of such a step."""

FAULT_WEIGHTS = "nan-weights.safetensors"
"""The weights before such a step."""

FAULT_FILES = (FAULT_BATCH, FAULT_REPORT, FAULT_WEIGHTS)
"""All files that describe such a step."""


def state_name(step: int) -> str:
    """Return the name of the file that holds the trainer's state after a step.

    Example:
        >>> state_name(20)
        'checkpoint-20.safetensors'
    """
    return STATE_PATTERN.replace("*", str(step))
