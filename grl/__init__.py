"""Gradient reversal layers with one API for PyTorch and JAX.

The layers are in `grl.torch_impl` and `grl.jax_impl`, which have the same files with the same names; importing `grl`
itself imports neither framework. Both share `grl.schedules`, the ramps of the coefficient λ.
"""

from grl import schedules
from grl.errors import GrlError
from grl.schedules import ConstantSchedule, DannSchedule, LinearSchedule

__version__ = "0.1.0"

__all__ = ["ConstantSchedule", "DannSchedule", "GrlError", "LinearSchedule", "__version__", "schedules"]
