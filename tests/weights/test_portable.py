"""Weights through a file: from either framework into either, and one clear error for every file that is wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
safetensors = pytest.importorskip("safetensors.numpy")

from grl import jax_impl, torch_impl
from grl.jax_impl.dann import ConvNet as JaxConvNet
from grl.parity import PortError, copy_weights, load_portable, save_portable
from grl.torch_impl.dann import ConvNet as TorchConvNet
from grl.weights.halves import half_of, side_of
from grl.weights_file import WeightsFileError, load_weights
from tests.support import nnx_models, torch_models
from tests.support.both_frameworks import state_of


def lenets() -> tuple[Any, Any]:
    """Names differ, and a linear layer follows a flattened map."""
    torch.manual_seed(0)
    return torch_models.LeNet(), nnx_models.LeNet(rngs=nnx.Rngs(1))


def danns() -> tuple[Any, Any]:
    torch.manual_seed(0)
    rngs = nnx.Rngs(1)
    return (
        torch_impl.DANN(TorchConvNet((3, 16, 16), (4, 6)), 5, domain_hidden=(7,)),
        jax_impl.DANN(JaxConvNet((3, 16, 16), (4, 6), rngs=rngs), 5, domain_hidden=(7,), rngs=rngs),
    )


MODELS = {
    "LeNet": lenets,
    "DANN": danns,
    "TextClassifier": lambda: (torch_models.TextClassifier(), nnx_models.TextClassifier(rngs=nnx.Rngs(1))),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_does_what_copying_does(name: str, tmp_path: Path) -> None:
    ours, theirs = MODELS[name]()
    expected = copy.deepcopy(ours), nnx.clone(theirs)
    save_portable(ours, tmp_path / "ours.safetensors")
    save_portable(theirs, tmp_path / "theirs.safetensors")
    copy_weights(ours, expected[1])
    copy_weights(theirs, expected[0])
    load_portable(theirs, tmp_path / "ours.safetensors")
    load_portable(ours, tmp_path / "theirs.safetensors")
    assert_same_state(ours, expected[0])
    assert_same_state(theirs, expected[1])


@pytest.mark.parametrize("side", [0, 1])
def test_a_file_gives_a_model_its_own_weights_back(side: int, tmp_path: Path) -> None:
    model, other = danns()[side], danns()[side]
    shake(other)
    save_portable(model, tmp_path / "model.safetensors")
    load_portable(other, tmp_path / "model.safetensors")
    assert_same_state(other, model)


@pytest.mark.parametrize("side", [0, 1])
def test_what_grl_train_writes_is_read(side: int, tmp_path: Path) -> None:
    pytest.importorskip("optax")
    from grl.experiment.architecture import Architecture, initial_weights
    from grl.weights_file import save_weights

    weights = initial_weights(Architecture((3, 16, 16), 5, (4, 6), label_hidden=(), domain_hidden=(7,)), seed=3)
    save_weights(tmp_path / "model.safetensors", weights)
    model = danns()[side]
    load_portable(model, tmp_path / "model.safetensors")
    save_portable(model, tmp_path / "again.safetensors")
    again = load_weights(tmp_path / "again.safetensors")
    assert again.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(again[key], array.astype(np.float32))


def test_pytorch_reads_the_file_of_nnx_as_a_state_dict(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    ours, theirs = danns()
    save_portable(theirs, tmp_path / "theirs.safetensors")
    result = ours.load_state_dict(load_file(tmp_path / "theirs.safetensors"), strict=False)
    assert not result.unexpected_keys
    assert all("num_batches_tracked" in key for key in result.missing_keys)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes_are_kept_and_exact(dtype: str, tmp_path: Path) -> None:
    with jax.enable_x64(True):
        ours = torch.nn.Linear(3, 4, dtype=getattr(torch, dtype))
        theirs = nnx.Linear(3, 4, param_dtype=dtype, rngs=nnx.Rngs(0))
        save_portable(ours, tmp_path / "model.safetensors")
        load_portable(theirs, tmp_path / "model.safetensors")
        assert theirs.kernel[...].dtype == dtype
        np.testing.assert_array_equal(
            np.asarray(theirs.kernel[...], np.float64), ours.weight.detach().double().numpy().T
        )


def test_layers_with_the_same_shapes_may_be_named_by_the_caller(tmp_path: Path) -> None:
    ours = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    theirs = nnx.Dict(x=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), y=nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    save_portable(ours, tmp_path / "model.safetensors")
    load_portable(theirs, tmp_path / "model.safetensors", names={"a": "y"})
    np.testing.assert_array_equal(theirs["y"].kernel[...], ours["a"].weight.detach().numpy().T)
    np.testing.assert_array_equal(theirs["x"].kernel[...], ours["b"].weight.detach().numpy().T)


# What is wrong is one error, and the model stays as it was.


@pytest.mark.parametrize("side", [0, 1])
def test_a_truncated_file_is_one_error_at_every_length(side: int, tmp_path: Path) -> None:
    model = danns()[side]
    save_portable(model, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    before = state_of(model)
    shake(model)
    shaken = state_of(model)
    for length in [*range(0, 40), *range(40, len(data), len(data) // 50), len(data) - 1]:
        (tmp_path / "part.safetensors").write_bytes(data[:length])
        with pytest.raises(WeightsFileError, match=r"part.safetensors: truncated or no safetensors"):
            load_portable(model, tmp_path / "part.safetensors")
    assert_same(state_of(model), shaken)
    load_portable(model, tmp_path / "whole.safetensors")
    assert_same(state_of(model), before)


def changed(tmp_path: Path, change: Any) -> Path:
    """A file of the DANN with something else in it."""
    save_portable(danns()[0], tmp_path / "model.safetensors")
    weights = load_weights(tmp_path / "model.safetensors")
    metadata = change(weights) or {}
    path = tmp_path / "changed.safetensors"
    path.write_bytes(safetensors.save(weights, metadata))
    return path


def drop(weights: Any) -> None:
    del weights["label_classifier.layers.0.weight"]


def add(weights: Any) -> None:
    weights["label_classifier.layers.9.weight"] = np.zeros(3, np.float32)


def reshape(weights: Any) -> None:
    weights["label_classifier.layers.0.weight"] = weights["label_classifier.layers.0.weight"].T.copy()


def poison(weights: Any) -> None:
    weights["backbone.norms.1.running_var"][0] = np.nan


def make_integers(weights: Any) -> None:
    weights["backbone.norms.1.running_var"] = np.ones(6, np.int64)


def foreign(weights: Any) -> None:
    weights.clear()
    weights["bert.embeddings.word_embeddings.weight"] = np.zeros((3, 4), np.float32)


def newer(weights: Any) -> dict[str, str]:
    return {"grl_portable": "2"}


def lying(weights: Any) -> dict[str, str]:
    return {"grl_portable": "1", "layers": json.dumps([["nothing.there", "Linear", ["weight"]]])}


def nonsense(weights: Any) -> dict[str, str]:
    return {"grl_portable": "1", "layers": "[3, {]"}


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "weights of another network: 'label_classifier.layers.0.weight' is missing"),
        (add, "weights of another network: 'label_classifier.layers.9.weight' has no place in this one"),
        (reshape, "'label_classifier.layers.0.weight' has shape .* expected"),
        (poison, "'backbone.norms.1.running_var' has other values; expected finite floating-point numbers"),
        (make_integers, "'backbone.norms.1.running_var' has other values; expected finite floating-point numbers"),
        (foreign, "weights of another network: .* is missing"),
        (newer, "of version '2' of the portable format; expected 1"),
        (lying, "its list of layers does not match its arrays"),
        (nonsense, "its list of layers does not match its arrays"),
    ],
)
def test_a_wrong_file_is_one_error(change: Any, message: str, side: int, tmp_path: Path) -> None:
    path = changed(tmp_path, change)
    model = danns()[side]
    before = state_of(model)
    with pytest.raises(WeightsFileError, match=message) as caught:
        load_portable(model, path)
    assert str(caught.value).startswith(str(path))
    assert_same(state_of(model), before)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsFileError, match="cannot be read: No such file"):
        load_portable(danns()[0], tmp_path / "nothing.safetensors")


def test_a_number_beyond_the_range_of_the_model_leaves_it_as_it_was(tmp_path: Path) -> None:
    ours = torch.nn.Linear(2, 2)
    with torch.no_grad():
        ours.bias[0] = 1e30
    save_portable(ours, tmp_path / "model.safetensors")
    half = torch.nn.Linear(2, 2, dtype=torch.float16)
    before = state_of(half)
    with pytest.raises(WeightsFileError, match="bias: a number is beyond the range of float16"):
        load_portable(half, tmp_path / "model.safetensors")
    assert_same(state_of(half), before)


def test_nan_is_not_written(tmp_path: Path) -> None:
    ours = torch.nn.Linear(2, 2)
    with torch.no_grad():
        ours.bias[0] = torch.nan
    with pytest.raises(PortError, match="bias: holds NaN or infinity"):
        save_portable(ours, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def shake(model: Any) -> None:
    for slot in half_of(side_of(model)).slots(model).values():
        slot.write(slot.prepare(slot.read() + 1))


def assert_same_state(model: Any, expected: Any) -> None:
    assert_same(state_of(model), state_of(expected))


def assert_same(state: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert state.keys() == expected.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
