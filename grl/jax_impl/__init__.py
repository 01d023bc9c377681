"""Gradient reversal in JAX: the function, its forward-mode twin, the layer (flax.nnx) and the model.

`grl.torch_impl` has the same names, so a port changes one import line. The functions need JAX alone. `GRL` and `DANN`
need Flax, which is imported when one of them is first used. The Linen layer is `grl.jax_impl.linen.GRL`.
"""

from __future__ import annotations

import typing

try:
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise ImportError('grl.jax_impl needs JAX: pip install "grl[jax]"') from error

from grl.jax_impl.coefficient import Coefficient
from grl.jax_impl.function import gradient_reversal, gradient_reversal_jvp

if typing.TYPE_CHECKING:
    from grl.jax_impl.dann import DANN
    from grl.jax_impl.module import GRL

__all__ = ["DANN", "GRL", "Coefficient", "gradient_reversal", "gradient_reversal_jvp"]


def __getattr__(name: str) -> object:
    if name == "GRL":
        from grl.jax_impl.module import GRL

        return GRL
    if name == "DANN":
        from grl.jax_impl.dann import DANN

        return DANN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
