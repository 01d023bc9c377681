"""Gradient reversal layers that are one thing in PyTorch and in JAX.

The layers live in `grl.torch_impl` and `grl.jax_impl`, which have the same files with the same names; importing
`grl` itself imports neither framework. What both share is here: `grl.schedules`, the ramps of the coefficient λ.
"""

from grl import schedules
from grl.errors import GrlError
from grl.schedules import ConstantSchedule, DannSchedule, LinearSchedule

__version__ = "0.1.0"

__all__ = ["ConstantSchedule", "DannSchedule", "GrlError", "LinearSchedule", "__version__", "schedules"]
