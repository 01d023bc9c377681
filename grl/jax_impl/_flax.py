"""Flax, for those files that need it; where it is missing, an error that names the extra that brings it."""

try:
    from flax import linen, nnx
except ModuleNotFoundError as error:
    if error.name != "flax":
        raise
    raise ImportError('this part of grl.jax_impl needs Flax: pip install "grl[jax]"') from error

__all__ = ["linen", "nnx"]
