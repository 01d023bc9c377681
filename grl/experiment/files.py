"""The names of the files that a run writes."""

__all__ = ["EVENTS"]

EVENTS = "events.out.tfevents."
"""What the names of TensorBoard's event files begin with."""
