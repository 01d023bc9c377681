"""Networks drawn at random, built in both frameworks: with the weights carried across they are the same function."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from tests.support.installed import DEEP
from tests.support.random_networks import Architecture, architectures

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
pytest.importorskip("flax.nnx")

from tests.support import random_networks_nnx, random_networks_torch
from tests.support.both_frameworks import assert_same_function

# Each example compiles two programs, which is what costs.
EXAMPLES = 1000 if DEEP else 10


@given(architecture=architectures(), towards=st.sampled_from(("nnx", "torch")), training=st.booleans())
@settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking takes minutes
def test_networks_agree_in_float64(architecture: Architecture, towards: str, training: bool) -> None:
    note(str(architecture))
    with jax.enable_x64(True):
        torch.manual_seed(0)
        ours = random_networks_torch.Network(architecture)
        theirs = random_networks_nnx.Network(architecture)
        flatten = None if architecture.order_can_be_found() else architecture.flattened()
        assert_same_function(ours, theirs, architecture.inputs(), towards=towards, training=training, flatten=flatten)
