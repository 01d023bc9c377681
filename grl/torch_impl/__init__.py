"""Gradient reversal in PyTorch: the function, the raw rule, the layer and the model.

`grl.jax_impl` has the same names, so a port changes one import line.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('grl.torch_impl needs PyTorch: pip install "grl[torch]"') from error

from grl.torch_impl.coefficient import Coefficient
from grl.torch_impl.dann import DANN
from grl.torch_impl.function import GradientReverseFunction, gradient_reversal
from grl.torch_impl.module import GRL

__all__ = ["DANN", "GRL", "Coefficient", "GradientReverseFunction", "gradient_reversal"]
