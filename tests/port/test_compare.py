"""`compare`: a right port agrees, the models stay as they are, and what the report says, shows, writes and draws."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

import jax.numpy as jnp
from torch import nn

from grl import jax_impl, torch_impl
from grl.jax_impl.dann import ConvNet as JaxConvNet
from grl.parity import Cause, assert_parity, compare, copy_weights
from grl.torch_impl.dann import ConvNet as TorchConvNet
from tests.support import nnx_models, torch_models

pytestmark = pytest.mark.trains  # flax's own layers do not all pass under strict promotion

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 3, 24, 24))
TOKENS = RNG.integers(0, 50, (3, 9))
MODELS: dict[str, Any] = {
    "ResNet": ({"width": 4, "blocks": (1, 1)}, IMAGES),
    "Transformer": ({"length": 9, "layers": 1}, TOKENS),
    "TextClassifier": ({}, TOKENS),
}


def both(name: str, **how: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    settings, _ = MODELS[name]
    ours = getattr(torch_models, name)(**settings)
    theirs = getattr(nnx_models, name)(**settings, **how, rngs=nnx.Rngs(1))
    if how:
        ours.double()
    copy_weights(ours, theirs)
    return ours, theirs


class JaxFlattening(nnx.Module):
    def __init__(self, rngs: Any) -> None:
        self.conv, self.fc = nnx.Conv(1, 3, (3, 3), padding="VALID", rngs=rngs), nnx.Linear(12, 2, rngs=rngs)
        self.act = nnx.Dropout(0.0, rngs=rngs)  # a layer between, whose result is compared

    def __call__(self, x: Any) -> Any:
        return self.fc(self.act(self.conv(x).reshape(len(x), -1)))


def test_foreign_weights_behind_a_layer_behind_a_flatten_are_no_flatten() -> None:
    """Only equal weights would tell of the order, and these are not equal."""
    parts = {"conv": nn.Conv2d(1, 3, 3), "flatten": nn.Flatten(), "act": nn.Dropout(0.0), "fc": nn.Linear(12, 2)}
    ours, theirs = nn.Sequential(OrderedDict(parts)), JaxFlattening(nnx.Rngs(0))
    copy_weights(ours, theirs)
    x = RNG.normal(size=(2, 1, 4, 4))
    assert_parity(ours, theirs, x, train=False)
    theirs.fc.kernel.set_value(theirs.fc.kernel.get_value() + 0.1 * RNG.normal(size=(12, 2)).astype(np.float32))
    divergence = compare(ours, theirs, x, train=False).first_divergence
    assert (divergence.where, divergence.causes[0]) == ("fc", "weights_not_copied")


class TorchDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.up = nn.Linear(5, 4 * 3 * 2), nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, x: Any) -> Any:
        return self.up(torch.relu(self.fc(x)).unflatten(1, (4, 3, 2)))


class JaxDecoder(nnx.Module):
    def __init__(self, pixel_by_pixel: bool, rngs: Any) -> None:
        self.fc, self.pixel_by_pixel = nnx.Linear(5, 24, rngs=rngs), pixel_by_pixel
        self.up = nnx.ConvTranspose(4, 2, (2, 2), strides=(2, 2), padding="VALID", rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.fc(x))
        return self.up(x.reshape(-1, 3, 2, 4) if self.pixel_by_pixel else x.reshape(-1, 4, 3, 2).transpose(0, 2, 3, 1))


def test_a_map_that_is_made_of_vectors_in_another_order_is_named() -> None:
    ours, right, wrong = TorchDecoder(), JaxDecoder(False, nnx.Rngs(0)), JaxDecoder(True, nnx.Rngs(0))
    x = RNG.normal(size=(3, 5))
    for theirs in (right, wrong):
        copy_weights(ours, theirs)
    assert_parity(ours, right, x)
    divergence = compare(ours, wrong, x).first_divergence
    assert divergence.causes[0] == "flatten_order"
    assert divergence.where == "fc → up"


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_a_right_port_agrees(name: str, double: bool) -> None:
    with jax.enable_x64(True) if double else nullcontext():
        ours, theirs = both(name, **({"param_dtype": np.float64} if double else {}))
        report = compare(ours, theirs, MODELS[name][1], train=name != "ResNet")
    assert report.agrees, str(report)
    assert not report.unmatched_torch
    assert not report.unmatched_nnx
    gradients = {row.key[0] for row in report.rows if row.kind == "gradient"}
    assert gradients >= {name for name, _ in ours.named_parameters() if "bias_hh" not in name}


def test_the_first_divergence_of_a_deep_model_is_where_the_fault_is() -> None:
    ours, theirs = both("ResNet")
    theirs.layer2.layers[0].bn1.epsilon = 1e-3
    found = compare(ours, theirs, IMAGES, train=False).first_divergence
    assert found.where == "layer2.0.bn1 (nnx: layer2.layers.0.bn1)"
    assert (found.kind, found.causes) == ("activation", ("epsilon",))


class Ours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.act, self.fc = nn.GELU(), nn.Linear(4 * 6 * 5, 3)

    def forward(self, x: Any) -> Any:
        return self.fc(self.drop(self.act(self.norm(self.conv(x)))).flatten(1))


class Theirs(nnx.Module):
    def __init__(self, approximate: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.conv, self.norm = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs), nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.drop, self.fc = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4 * 6 * 5, 3, rngs=rngs)
        self.approximate = approximate

    def __call__(self, x: Any) -> Any:
        x = self.drop(nnx.gelu(self.norm(self.conv(x)), approximate=self.approximate))
        return self.fc(x.reshape(len(x), -1))


SMALL = RNG.normal(size=(4, 3, 6, 5)).astype(np.float32)


def small(**how: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    ours, theirs = Ours(), Theirs(**how)
    copy_weights(ours, theirs, flatten={"fc": (4, 6, 5)})
    return ours, theirs


def test_models_are_left_as_they_were() -> None:
    ours, theirs = small()
    optimizer = torch.optim.Adam(ours.parameters())
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    their_state = jax.tree.map(np.asarray, jax.tree.map(_data, nnx.to_pure_dict(nnx.state(theirs))))
    random = torch.get_rng_state().clone()
    import optax

    compare(ours, theirs, SMALL, optimizers=(optimizer, optax.adam(1e-3)), train=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not optimizer.state
    assert ours.training
    after = jax.tree.map(np.asarray, jax.tree.map(_data, nnx.to_pure_dict(nnx.state(theirs))))
    assert jax.tree.all(jax.tree.map(np.array_equal, their_state, after))


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_the_report_says_shows_writes_and_draws_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    ours, theirs = small(approximate=True)
    report = compare(ours, theirs, np.moveaxis(SMALL, 1, -1), train=False)
    found = report.first_divergence
    assert not report.agrees
    assert found.where == "act"
    assert found.causes[0] == "gelu_approximation"
    assert found.causes[0].sentence in str(report)
    assert any("NHWC" in note for note in report.notes)
    report.show()
    shown = " ".join(capsys.readouterr().out.split())
    assert "fc.weight" in shown
    assert "differs first at act" in shown
    report.to_json(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert data["first_divergence"]["causes"][0]["identifier"] == "gelu_approximation"
    assert [row["where"] for row in data["rows"]] == [row.where for row in report.rows]
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_assert_parity_raises_the_sentence() -> None:
    ours, theirs = small()
    assert_parity(ours, theirs, SMALL, train=False)
    theirs.conv.padding = ((2, 0), (1, 1))
    with pytest.raises(AssertionError, match=r"differs first at conv, by .* in float64. The layers pad differently"):
        assert_parity(ours, theirs, SMALL, train=False)


def test_a_cause_that_is_known_of_can_be_accepted() -> None:
    ours, theirs = small()
    report = compare(ours, theirs, SMALL, train=True)
    assert report.first_divergence.causes == ("batchnorm_variance",)
    assert report.first_divergence.kind == "statistic"
    assert "dropout (rates 0.5) is off on both sides" in report.notes
    assert compare(ours, theirs, SMALL, train=True, ignore=["batchnorm_variance"]).agrees


def test_an_nnx_model_that_takes_channels_first_gets_them_so() -> None:
    torch.manual_seed(0)
    ours = torch_impl.DANN(TorchConvNet((1, 12, 12), (2,), 3), 3)
    rngs = nnx.Rngs(0)
    theirs = jax_impl.DANN(JaxConvNet((1, 12, 12), (2,), 3, rngs=rngs), 3, rngs=rngs)
    copy_weights(ours, theirs)
    report = compare(ours, theirs, (RNG.normal(size=(3, 12, 12, 1)), 0.5), train=True)
    assert report.agrees, str(report)
    assert any("channels first" in note for note in report.notes)


class OurAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.attention(x, x, x)[0]


class TheirAttention(nnx.Module):
    def __init__(self) -> None:
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.attention(x)


def test_attention_agrees_whose_softmax_insists_on_float32() -> None:
    ours, theirs = OurAttention(), TheirAttention()
    copy_weights(ours, theirs)
    assert_parity(ours, theirs, RNG.normal(size=(2, 5, 8)))


def test_what_cannot_be_compared_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="layout: got 'HWCN'; expected NCHW or NHWC"):
        compare(Ours(), Theirs(), SMALL, layout="HWCN")
    with pytest.raises(TypeError, match="expected an nn"):
        compare(lambda x: x, Theirs(), SMALL)


def test_a_cause_is_its_identifier() -> None:
    cause = Cause("padding", "two pixels")
    assert cause == "padding"
    assert "padding" in (cause,)
    assert cause.sentence == "The layers pad differently: two pixels."


@pytest.mark.slow_timing
def test_two_resnets_are_compared_within_a_minute_of_a_processor() -> None:
    """Half a minute on two cores."""
    ours, theirs = torch_models.ResNet(), nnx_models.ResNet(rngs=nnx.Rngs(0))
    copy_weights(ours, theirs)
    start = time.process_time()
    assert compare(ours, theirs, RNG.normal(size=(8, 3, 64, 64)), train=False).agrees
    assert time.process_time() - start < 60
