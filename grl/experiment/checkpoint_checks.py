"""Checks that a state fits a run: its names and shapes, its optimiser, and the data that the run trains on."""

from __future__ import annotations

from collections.abc import Mapping

from grl.arrays import Weights
from grl.experiment.architecture import Architecture
from grl.experiment.checkpoint import Checkpoint, CheckpointError
from grl.experiment.config import shown

__all__ = ["MOMENTS", "check_network", "check_shapes", "check_state", "state_shapes"]

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""The arrays that each optimiser keeps of every parameter, by PyTorch's names."""


def state_shapes(architecture: Architecture, optimizer: str) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the arrays that `Trainer.state` returns in either backend.

    Args:
        architecture: the network.
        optimizer: a key of `MOMENTS`.

    Example:
        >>> shapes = state_shapes(Architecture((2,), num_classes=2), "adam")
        >>> shapes["model/backbone.layers.0.bias"], shapes["exp_avg/backbone.layers.0.bias"], shapes["step"]
        ((15,), (15,), ())
    """
    weights = architecture.shapes()
    shapes = {f"model/{name}": shape for name, shape in weights.items()}
    for moment in MOMENTS[optimizer]:
        shapes |= {f"{moment}/{name}": shape for name, shape in weights.items() if ".running_" not in name}
    if optimizer == "adam":
        shapes["step"] = ()
    return shapes


def check_shapes(source: str, arrays: Weights, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that arrays have exactly the expected names and shapes.

    Args:
        source: the source of the arrays, for the message.
        arrays: name → array.
        expected: name → shape.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape differs.
    """
    _check_names(source, set(arrays), set(expected))
    for name, shape in expected.items():
        _check_shape(source, name, arrays[name].shape, shape)


def check_network(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a checkpoint has the weights of the network in its settings, before that network takes memory.

    Args:
        checkpoint: the checkpoint to continue from.
        shapes: name → shape of all weights.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    source = _source(checkpoint)
    for name, shape in shapes.items():
        if f"model/{name}" not in checkpoint.state:
            raise CheckpointError(f"{source}: 'model/{name}' is missing.")
        _check_shape(source, f"model/{name}", checkpoint.state[f"model/{name}"].shape, shape)


def check_state(checkpoint: Checkpoint, expected: Weights, data: Mapping[str, object]) -> None:
    """Check that a checkpoint belongs to this network, this optimiser and these data.

    Args:
        checkpoint: the checkpoint to continue from.
        expected: a state of the trainer; its values do not matter.
        data: the description of the data, from `grl.experiment.batching.fingerprint`.

    Raises:
        CheckpointError: a name, a shape, a dtype or the data differ.
    """
    source, state = _source(checkpoint), checkpoint.state
    _check_names(source, set(state), set(expected))
    for name, array in expected.items():
        if (array.shape, array.dtype) != (state[name].shape, state[name].dtype):
            got = f"{state[name].dtype} of shape {state[name].shape}"
            raise CheckpointError(f"{source}: {name!r} is {got}; expected {array.dtype} of shape {array.shape}.")
    for name, value in data.items():
        if checkpoint.data.get(name) != value:
            difference = f"{name} is {value!r}; was {shown(checkpoint.data.get(name))}"
            raise CheckpointError(f"{source}: the data are not those that it was trained on: {difference}.")


def _check_names(source: str, names: set[str], expected: set[str]) -> None:
    for name in sorted(names ^ expected):
        reason = "is missing" if name in expected else "has no place in this network"
        raise CheckpointError(f"{source}: {shown(name)} {reason}.")


def _check_shape(source: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise CheckpointError(f"{source}: {name!r} is of shape {shape}; expected {expected}.")


def _source(checkpoint: Checkpoint) -> str:
    return f"checkpoint of step {checkpoint.done.step}"
