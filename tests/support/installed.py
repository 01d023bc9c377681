"""What is installed of the frameworks, and how a test says what it needs. Imports none of them."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from grl.backends import installed_backends
from grl.experiment.config import BACKENDS

HAS_TORCH = find_spec("torch") is not None
HAS_JAX = find_spec("jax") is not None
HAS_FLAX = HAS_JAX and find_spec("flax") is not None
INSTALLED = installed_backends(training=True)
"""The backends that can train."""

needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
needs_jax = pytest.mark.skipif(not HAS_JAX, reason="needs JAX")
needs_flax = pytest.mark.skipif(not HAS_FLAX, reason="needs JAX and Flax")
any_backend = pytest.mark.skipif(not INSTALLED, reason="needs a framework")
both_backends = pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both frameworks")
each_backend = pytest.mark.parametrize("backend", [
    pytest.param(name, marks=pytest.mark.skipif(name not in INSTALLED, reason=f"{name} is not installed"))
    for name in BACKENDS
])  # fmt: skip
DEEP = bool(os.environ.get("GRL_DEEP"))
"""Whether what takes long runs too, as `make test-deep` has it."""

deep = pytest.mark.skipif(not DEEP, reason="GRL_DEEP=1 runs it")
