"""Gradient reversal in JAX: the function, its forward-mode twin, the layer (flax.nnx) and the model.

`grl.torch_impl` has the same names, so that a port is a change of one import line. The functions need JAX alone;
`GRL` and `DANN` need Flax, which is imported when one of them is first asked for. The Linen layer is
`grl.jax_impl.linen.GRL`.
"""

from typing import TYPE_CHECKING, Any

try:
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise ImportError('grl.jax_impl needs JAX: pip install "grl[jax]"') from error

from grl.jax_impl.function import gradient_reversal, gradient_reversal_jvp

if TYPE_CHECKING:
    from grl.jax_impl.dann import DANN
    from grl.jax_impl.module import GRL

__all__ = ["DANN", "GRL", "gradient_reversal", "gradient_reversal_jvp"]


def __getattr__(name: str) -> Any:
    if name == "GRL":
        from grl.jax_impl.module import GRL

        return GRL
    if name == "DANN":
        from grl.jax_impl.dann import DANN

        return DANN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
