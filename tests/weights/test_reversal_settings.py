"""λ and the step count of a reversal are settings: copied where both models have a GRL, and left where one has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
pytest.importorskip("safetensors")

from torch import nn

from grl import DannSchedule, jax_impl, torch_impl
from grl.parity import PortError, copy_weights, load_portable, pair, save_portable
from tests.support.both_frameworks import state_of

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


class Reverse(torch.autograd.Function):
    """A repository's own reversal."""

    @staticmethod
    def forward(ctx: Any, x: Any, coeff: float) -> Any:
        ctx.coeff = coeff
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return -ctx.coeff * gradient, None


class OwnTorchReversal(nn.Module):
    def forward(self, x: Any) -> Any:
        return Reverse.apply(x, 0.5)


class OwnNnxReversal(nnx.Module):
    def __call__(self, x: Any) -> Any:
        return jax_impl.gradient_reversal(x, 0.5)


class TorchModel(nn.Module):
    """Features, a label classifier, and a domain classifier behind a reversal."""

    def __init__(self, reversal: Any = None) -> None:
        super().__init__()
        self.features, self.label, self.domain = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)
        if reversal is not None:
            self.grl = reversal

    def forward(self, x: Any) -> Any:
        features = torch.tanh(self.features(x))
        reverse = getattr(self, "grl", None) or (lambda x: Reverse.apply(x, 0.5))
        return self.label(features), self.domain(reverse(features))


class NnxModel(nnx.Module):
    def __init__(self, reversal: Any = None) -> None:
        rngs = nnx.Rngs(0)
        self.features, self.label = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.domain = nnx.Linear(8, 1, rngs=rngs)
        if reversal is not None:
            self.grl = reversal

    def __call__(self, x: Any) -> Any:
        features = jax.numpy.tanh(self.features(x))
        reverse = getattr(self, "grl", None) or (lambda x: jax_impl.gradient_reversal(x, 0.5))
        return self.label(features), self.domain(reverse(features))


def gradients(torch_model: Any, nnx_model: Any) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the feature extractor's weight, for the sum of both outputs, on either side."""
    torch_model.zero_grad()
    sum(y.sum() for y in torch_model(torch.from_numpy(X))).backward()
    grads = nnx.grad(lambda model: sum(y.sum() for y in model(X)))(nnx_model)
    return torch_model.features.weight.grad.numpy(), np.asarray(grads.features.kernel[...]).T


def advanced(layer: Any, steps: int = 3) -> Any:
    for _ in range(steps):
        layer.step()
    return layer


OWN_TORCH = {"a module": OwnTorchReversal, "a function": lambda: None}
OWN_NNX = {"a module": OwnNnxReversal, "a function": lambda: None}


@pytest.mark.parametrize("own", OWN_TORCH)
@pytest.mark.parametrize("towards", ["nnx", "torch"])
def test_a_reversal_of_its_own_in_pytorch_leaves_ours_in_nnx_as_it_is(own: str, towards: str) -> None:
    torch_model, nnx_model = TorchModel(OWN_TORCH[own]()), NnxModel(advanced(jax_impl.GRL(DannSchedule(10))))
    before = state_of(nnx_model.grl)
    pairing = copy_weights(*((torch_model, nnx_model) if towards == "nnx" else (nnx_model, torch_model)))
    assert pairing.complete
    assert pairing.notes == ("grl: keeps its coeff and step; the PyTorch model has no GRL to match it.",)
    assert state_of(nnx_model.grl) == before
    nnx_model.grl.coeff = 0.5
    np.testing.assert_allclose(*gradients(torch_model, nnx_model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("own", OWN_NNX)
@pytest.mark.parametrize("towards", ["nnx", "torch"])
def test_a_reversal_of_its_own_in_nnx_leaves_ours_in_pytorch_as_it_is(own: str, towards: str) -> None:
    torch_model, nnx_model = TorchModel(advanced(torch_impl.GRL(DannSchedule(10)))), NnxModel(OWN_NNX[own]())
    before = state_of(torch_model.grl)
    pairing = copy_weights(*((torch_model, nnx_model) if towards == "nnx" else (nnx_model, torch_model)))
    assert pairing.complete
    assert pairing.notes == ("grl: keeps its coeff and step; the nnx model has no GRL to match it.",)
    assert state_of(torch_model.grl) == before
    torch_model.grl.coeff = 0.5
    np.testing.assert_allclose(*gradients(torch_model, nnx_model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("towards", ["nnx", "torch"])
def test_settings_of_two_layers_are_copied_and_the_schedule_goes_on_from_the_step(towards: str) -> None:
    torch_model = TorchModel(torch_impl.GRL(DannSchedule(10)))
    nnx_model = NnxModel(jax_impl.GRL(DannSchedule(10)))
    source, target = (torch_model, nnx_model) if towards == "nnx" else (nnx_model, torch_model)
    advanced(source.grl)
    assert copy_weights(source, target).notes == ()
    assert target.grl.coeff == DannSchedule(10)(3)
    target.grl.step()
    assert target.grl.coeff == DannSchedule(10)(4)


def test_a_weight_without_a_counterpart_is_still_an_error() -> None:
    nnx_model = NnxModel(jax_impl.GRL(0.5))
    nnx_model.extra = nnx.Param(jax.numpy.ones(3))
    with pytest.raises(PortError, match=r"^extra of the nnx model has no counterpart\.$"):
        copy_weights(TorchModel(OwnTorchReversal()), nnx_model)


def test_more_reversals_on_one_side_are_no_ambiguity_of_weights() -> None:
    torch_model = nn.ModuleDict({"a": torch_impl.GRL(0.1), "b": torch_impl.GRL(0.2), "fc": nn.Linear(2, 2)})
    nnx_model = nnx.Dict(x=jax_impl.GRL(0.7), fc=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    pairing = copy_weights(torch_model, nnx_model)
    assert nnx_model["x"].coeff == 0.7
    assert [note.partition(":")[0] for note in pairing.notes] == ["a", "b", "x"]
    assert pairing.ambiguous == ()


class TorchBackbone(nn.Module):
    output_dim = 8

    def __init__(self, reversal: Any = None) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 8)
        self.before = reversal or nn.Identity()

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.fc(self.before(x)))


class NnxBackbone(nnx.Module):
    output_dim = 8

    def __init__(self, reversal: Any = None) -> None:
        self.fc = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
        self.before = reversal or (lambda x: x)

    def __call__(self, x: Any) -> Any:
        return jax.numpy.tanh(self.fc(self.before(x)))


@pytest.mark.parametrize("side", ["nnx", "torch"])
@pytest.mark.parametrize("towards", ["nnx", "torch"])
def test_a_dann_with_a_layer_on_one_side_is_copied(side: str, towards: str) -> None:
    torch_model = torch_impl.DANN(TorchBackbone(torch_impl.GRL(0.3) if side == "torch" else None), 3)
    backbone = NnxBackbone(jax_impl.GRL(0.3) if side == "nnx" else None)
    nnx_model = jax_impl.DANN(backbone, 3, rngs=nnx.Rngs(1))
    pairing = copy_weights(*((torch_model, nnx_model) if towards == "nnx" else (nnx_model, torch_model)))
    assert [note.partition(":")[0] for note in pairing.notes] == ["backbone.before"]
    weight = torch_model.backbone.fc.weight.detach().numpy()
    np.testing.assert_array_equal(nnx_model.backbone.fc.kernel[...].T, weight)
    assert pair(torch_model, nnx_model).notes == pairing.notes


@pytest.mark.parametrize("writer", ["torch", "nnx"])
@pytest.mark.parametrize("reader", ["torch", "nnx"])
def test_a_file_carries_settings_between_models_that_have_them(writer: str, reader: str, tmp_path: Path) -> None:
    def ours(side: str, coeff: float) -> Any:
        return TorchModel(torch_impl.GRL(coeff)) if side == "torch" else NnxModel(jax_impl.GRL(coeff))

    def own(side: str) -> Any:
        return TorchModel(OwnTorchReversal()) if side == "torch" else NnxModel(OwnNnxReversal())

    path = tmp_path / "model.safetensors"
    for source, target in ((own(writer), ours(reader, 0.3)), (ours(writer, 0.7), ours(reader, 0.3))):
        save_portable(source, path)
        load_portable(target, path)
        assert target.grl.coeff == (0.3 if isinstance(source.grl, OwnTorchReversal | OwnNnxReversal) else 0.7)
    save_portable(ours(writer, 0.7), path)
    load_portable(own(reader), path)


def test_pytorch_reads_the_settings_of_nnx_from_a_file_as_a_state_dict(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    nnx_model, torch_model = NnxModel(advanced(jax_impl.GRL(DannSchedule(10)))), TorchModel(torch_impl.GRL(1.0))
    save_portable(nnx_model, tmp_path / "model.safetensors")
    torch_model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch_model.grl.coeff == DannSchedule(10)(3)
    assert torch_model.state_dict()["grl.step_count"] == 3
