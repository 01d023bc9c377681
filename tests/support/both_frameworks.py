"""A PyTorch model and an nnx model side by side: the same weights, the same inputs, the same outputs and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from grl.parity import copy_weights
from grl.weights.flattened import find_flattened
from grl.weights.halves import half_of, side_of
from grl.weights.pairing import pair

TOLERANCE = 1e-10  # relative, in float64


def assert_same_function(
    ours: torch.nn.Module,
    theirs: nnx.Module,
    x: np.ndarray,
    *,
    towards: str = "nnx",
    training: bool = False,
    flatten: Any = None,
) -> None:
    """Copy the weights, and compare outputs and gradients of Σ outputs · weights. Random state is moved off 0 and 1.

    Args:
        ours: of PyTorch, in float64.
        theirs: of nnx, in float64.
        x: images (N, C, …), vectors (N, D), or tokens (N, T) of integers.
        towards: the side that the weights are copied to.
        training: whether batch norm is in training mode; dropout is off in any case.
        flatten: as `copy_weights` takes it.
    """
    _widen(theirs)
    _shake(ours if towards == "nnx" else theirs)
    copy_weights(*((ours, theirs) if towards == "nnx" else (theirs, ours)), flatten=flatten)
    _set_mode(ours, theirs, training)
    y, gradients = torch_gradients(ours, x)
    with jax.numpy_dtype_promotion("standard"):  # flax's own layers do not all pass under the strict one
        z, others = jax_gradients(ours, theirs, x, flatten)
    assert_close(z, y, "outputs")
    assert gradients.keys() >= others.keys()
    assert len(others) > 0
    # A gradient that cancels, as of a bias before batch norm, is exact only to the size of what cancels.
    floor = max(np.abs(gradient).max(initial=0) for gradient in gradients.values()) / 100
    for name, gradient in others.items():
        assert_close(gradient, gradients[name], name, floor)


def torch_gradients(model: torch.nn.Module, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Outputs, and gradients by name."""
    model.zero_grad()
    y = model(torch.from_numpy(x))
    (y * torch.from_numpy(_weights(tuple(y.shape)))).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return y.detach().numpy(), gradients


def jax_gradients(
    ours: torch.nn.Module, model: nnx.Module, x: np.ndarray, flatten: Any = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Outputs, and gradients by PyTorch's names and in its layouts."""
    x = jnp.asarray(np.moveaxis(x, 1, -1) if x.ndim > 2 else x)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any) -> Any:
        y = nnx.merge(graph, params, rest, copy=True)(x)
        return (y * _weights(y.shape)).sum(), y

    gradients, y = jax.jit(jax.grad(loss, has_aux=True))(params)
    with_gradients = nnx.merge(graph, gradients, rest)
    known = {id(v) for _, v in nnx.iter_graph(with_gradients) if isinstance(v, nnx.Param)}
    slots = half_of("nnx").slots(with_gradients)
    arrays = {name: slot.read() for name, slot in slots.items() if slot.identity in known}
    pairing = pair(ours, model)
    flattened = find_flattened(model, flatten, {one.torch_name: one.nnx_name for one in pairing.pairs})
    return np.asarray(y), pairing.to_torch(arrays, flattened, gradients=True)


def state_of(model: Any) -> dict[str, np.ndarray]:
    """A copy of all parameters and statistics of a model, by its framework's names."""
    return {name: np.array(slot.read()) for name, slot in half_of(side_of(model)).slots(model).items()}


def assert_close(actual: np.ndarray, expected: np.ndarray, what: str, floor: float = 0.0) -> None:
    """Equal up to 1e-10 of the largest element, or of `floor` if that is more."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape}, expected {expected.shape}"
    difference = np.abs(actual - expected).max(initial=0)
    assert difference <= TOLERANCE * max(np.abs(expected).max(initial=0), floor, 1e-2), (
        f"{what}: differs by {difference:.3g}"
    )


def _weights(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape)


def _shake(model: Any) -> None:
    """Scales, shifts and statistics as after some training: a 1 or 0 would hide that it was not carried across."""
    generator = np.random.default_rng(2)
    for name, slot in half_of(side_of(model)).slots(model).items():
        lonely = "bias_hh" in name or "cell." in name  # a recurrent bias that the other side may not have
        if slot.shape is not None and len(slot.shape) == 1 and not lonely:
            slot.write(slot.prepare(slot.read() + 0.3 * generator.random(slot.shape)))


def _widen(model: nnx.Module) -> None:
    """Statistics in float64, which nnx makes float32 whatever the parameters are."""
    for slot in half_of("nnx").slots(model).values():
        slot.write(jnp.asarray(slot.keep(), np.float64))


def _set_mode(ours: torch.nn.Module, theirs: nnx.Module, training: bool) -> None:
    ours.train(training)
    (theirs.train if training else theirs.eval)()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    for _, module in nnx.iter_modules(theirs):
        if isinstance(module, nnx.Dropout):
            module.eval()
