"""Whole models, written in both frameworks: with the weights carried across they are the same function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

from tests.support import nnx_models, torch_models
from tests.support.both_frameworks import assert_same_function
from tests.support.installed import DEEP


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50, shape)


MODELS = {
    "ResNet": ({"width": 4, "blocks": (2, 2, 2, 2) if DEEP else (1, 1, 1, 1)}, lambda: images(2, 3, 32, 32)),
    "Transformer": ({}, lambda: tokens(3, 12)),
    "TextClassifier": ({}, lambda: tokens(3, 9)),
    "LeNet": ({}, lambda: images(2, 1, 28, 28)),
}
# Every way for the deep run; by default each direction and each mode once.
WAYS = (
    [(towards, training) for towards in ("nnx", "torch") for training in (False, True)]
    if DEEP
    else [
        ("nnx", True),
        ("torch", False),
    ]
)
models = pytest.mark.parametrize("name", MODELS)


@models
@pytest.mark.parametrize(("towards", "training"), WAYS, ids=str)
def test_outputs_and_gradients_agree_in_float64(name: str, towards: str, training: bool) -> None:
    settings, make = MODELS[name]
    with jax.enable_x64(True):
        ours = build(getattr(torch_models, name), settings)
        theirs = getattr(nnx_models, name)(**settings, param_dtype=np.float64, rngs=nnx.Rngs(1))
        assert_same_function(ours, theirs, make(), towards=towards, training=training)


def build(model: Callable[..., Any], settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return model(**settings).double()
