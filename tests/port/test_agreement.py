"""`compare`: no agreement in silence where something was not compared, and no divergence where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
optax = pytest.importorskip("optax")

import jax.numpy as jnp
import torch.nn.functional as F
from torch import nn

from grl.parity import ParityReport, assert_parity, compare, copy_weights

pytestmark = pytest.mark.trains

RNG = np.random.default_rng(0)
BIASED = ["batchnorm_variance"]
X = RNG.normal(size=(5, 4)).astype(np.float32)


class Ours(nn.Module):
    def __init__(self, body: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *x: Any) -> Any:
        return self.body(self, *x)


class Theirs(nnx.Module):
    def __init__(self, body: Callable[..., Any], **layers: Any) -> None:
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, *x: Any) -> Any:
        return self.body(self, *x)


def linears(ours: Callable[..., Any], theirs: Callable[..., Any], **sizes: tuple[int, int]) -> tuple[Any, Any]:
    """Two models of linear layers, `a` from 4 to 6 and `b` from 6 to 3 if no others are asked for."""
    sizes = sizes or {"a": (4, 6), "b": (6, 3)}
    torch.manual_seed(0)
    both = (
        Ours(ours, **{name: nn.Linear(*size) for name, size in sizes.items()}),
        Theirs(theirs, **{name: nnx.Linear(*size, rngs=nnx.Rngs(0)) for name, size in sizes.items()}),
    )
    copy_weights(*both)
    return both


def in_torch(m: Any, x: Any) -> Any:
    return m.b(torch.tanh(m.a(x)))


def in_jax(m: Any, x: Any) -> Any:
    return m.b(jnp.tanh(m.a(x)))


def square(output: Any) -> Any:
    return (output**2).mean()


def test_dropouts_of_other_arrays_or_of_whole_channels_are_noted() -> None:
    ours, theirs = linears(lambda m, x: F.dropout(in_torch(m, x)), lambda m, x: m.b(m.drop(jnp.tanh(m.a(x)))))
    theirs.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    notes = compare(ours, theirs, X, train=True).notes
    assert "dropout 1 is of an array (5, 3) in PyTorch and (5, 6) in nnx" in notes
    ours.body, theirs.body = lambda m, x: F.dropout1d(in_torch(m, x)), lambda m, x: m.drop(in_jax(m, x))
    notes = compare(ours, theirs, X, train=True).notes
    assert "dropout 1 drops whole channels in PyTorch and single numbers in nnx" in notes


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_module_of_two_names_is_compared_whichever_name_is_kept(is_cut: bool) -> None:
    def body(m: Any, x: Any) -> Any:
        inner = m.z(x)
        return m.out(jnp.tanh(m.a(jnp.tanh(jax.lax.stop_gradient(inner) if is_cut else inner))))

    shared, their_shared = nn.Linear(4, 4), nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    ours = Ours(lambda m, x: m.out(torch.tanh(m.a(torch.tanh(m.z(x))))), z=shared, a=shared, out=nn.Linear(4, 2))
    theirs = Theirs(body, z=their_shared, a=their_shared, out=nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    copy_weights(ours, theirs)
    report = compare(ours, theirs, X)
    assert "z.weight" in {row.key[0] for row in report.rows if row.kind == "gradient"}
    assert report.agrees != is_cut


def test_what_has_no_counterpart_is_said() -> None:
    ours, theirs = linears(in_torch, in_jax)
    ours.scale = nn.Parameter(torch.ones(7))
    assert "Not compared: scale (of the PyTorch model without a counterpart)." in str(compare(ours, theirs, X))
    with pytest.warns(UserWarning, match="Not compared: scale"):
        assert_parity(ours, theirs, X)


def test_what_is_frozen_on_one_side_is_said() -> None:
    ours, theirs = linears(in_torch, in_jax)
    ours.a.requires_grad_(False)
    said = "Not compared: a.weight, a.bias (with a gradient on one side alone)."
    assert said in str(compare(ours, theirs, X))
    head = nnx.Optimizer(theirs, optax.sgd(0.1), wrt=nnx.All(nnx.Param, nnx.PathContains("b")))
    report = compare(ours, theirs, X, loss=square, optimizers=(torch.optim.SGD(ours.b.parameters(), 0.1), head))
    assert report.agrees, str(report)
    assert not report.uncompared


def test_a_number_that_is_finite_on_one_side_alone_is_no_rounding() -> None:
    ours, theirs = linears(lambda m, x: F.softplus(m.a(x)), lambda m, x: jnp.log(1 + jnp.exp(m.a(x))), a=(4, 6))
    found = compare(ours, theirs, 100 * X).first_divergence
    assert found.where == "output"
    assert "in the models' own precision only one side is finite" in str(found)


def test_gradients_that_are_nan_on_both_sides_are_noted() -> None:
    ours, theirs = linears(lambda m, x: in_torch(m, x) - torch.inf, lambda m, x: in_jax(m, x) - jnp.inf)
    notes = compare(ours, theirs, X).notes
    assert any(note.startswith("gradients are NaN on both sides, and tell nothing: a.weight") for note in notes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_that_changes_its_input_does_not_change_the_callers(dtype: Any) -> None:
    x = X.astype(dtype)
    before = x.copy()
    ours, theirs = linears(lambda m, x: in_torch(m, x.sub_(0.5)), lambda m, x: in_jax(m, x - 0.5))
    assert_parity(ours, theirs, x)
    np.testing.assert_array_equal(x, before)


def convolutions(ours: Any, theirs: Any, **layers: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return (
        Ours(ours, conv=nn.Conv2d(3, 4, 3), **{name: layer[0] for name, layer in layers.items()}),
        Theirs(
            theirs,
            conv=nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=nnx.Rngs(0)),
            **{name: layer[1] for name, layer in layers.items()},
        ),
    )


def test_images_of_bytes_are_laid_out() -> None:
    ours, theirs = convolutions(lambda m, x: m.conv(x.float()), lambda m, x: m.conv(x.astype(jnp.float32)))
    copy_weights(ours, theirs)
    assert_parity(ours, theirs, RNG.integers(0, 255, (2, 3, 6, 5)).astype(np.uint8))


def test_bfloat16_inputs_are_taken_from_either_framework() -> None:
    ours, theirs = linears(in_torch, in_jax)
    for x in (torch.from_numpy(X).bfloat16(), jnp.asarray(X, jnp.bfloat16)):
        assert_parity(ours, theirs, x)


def test_sparse_gradients_are_compared() -> None:
    ours = Ours(lambda m, i: m.a(i), a=nn.Embedding(6, 3, sparse=True))
    theirs = Theirs(lambda m, i: m.a(i), a=nnx.Embed(6, 3, rngs=nnx.Rngs(0)))
    copy_weights(ours, theirs)
    assert_parity(ours, theirs, np.arange(4))


def test_constant_weights_behind_a_flatten_are_permuted_too() -> None:
    ours, theirs = convolutions(
        lambda m, x: m.fc(m.conv(x).flatten(1)),
        lambda m, x: m.fc(m.conv(x).reshape(len(x), -1)),
        fc=(nn.Linear(64, 2), nnx.Linear(64, 2, rngs=nnx.Rngs(0))),
    )
    nn.init.zeros_(ours.fc.weight)
    copy_weights(ours, theirs)
    assert_parity(ours, theirs, RNG.normal(size=(3, 3, 6, 6)))


def test_constant_weights_are_permuted_as_others_of_as_many_inputs_where_no_experiment_can_be_made() -> None:
    ours, theirs = convolutions(
        lambda m, x, y: m.out(m.norm((m.conv(x) * y).flatten(1))),
        lambda m, x, y: m.out(m.norm((m.conv(x) * y).reshape(len(x), -1))),
        norm=(nn.BatchNorm1d(48), nnx.BatchNorm(48, momentum=0.9, rngs=nnx.Rngs(0))),
        out=(nn.Linear(48, 2), nnx.Linear(48, 2, rngs=nnx.Rngs(0))),
    )
    copy_weights(ours, theirs, flatten={"norm": (4, 4, 3), "out": (4, 4, 3)})
    assert_parity(ours, theirs, (RNG.normal(size=(3, 3, 6, 5)), np.float32(2.0)), train=True, ignore=BIASED)


def heads(m: Any, hidden: Any) -> dict[str, Any]:
    return {"q": m.q(hidden), "k": m.k(hidden)}


def test_a_dict_of_outputs_goes_by_its_keys() -> None:
    sizes = {"a": (4, 6), "q": (6, 3), "k": (6, 3)}
    ours, theirs = linears(lambda m, x: heads(m, m.a(x).tanh()), lambda m, x: heads(m, jnp.tanh(m.a(x))), **sizes)
    assert_parity(ours, theirs, X)
    theirs.body = lambda m, x: m.q(jnp.tanh(m.a(x)))
    losses = (lambda output: square(output["q"]), square)
    note = "the output is 2 arrays in PyTorch and 1 in nnx, of which the first are compared"
    assert note in compare(ours, theirs, X, loss=losses).notes


def test_constants_that_a_forward_pass_makes_are_in_float64_too() -> None:
    ours, theirs = linears(
        lambda m, x: in_torch(m, x) * torch.tensor([0.1, 0.2, 0.3]) * torch.linspace(0.0, 1.0, 3),
        lambda m, x: in_jax(m, x) * jnp.array([0.1, 0.2, 0.3]) * jnp.linspace(0.0, 1.0, 3),
    )
    assert_parity(ours, theirs, X)
    assert torch.get_default_dtype() == torch.float32


def test_complex_parameters_have_the_same_gradient() -> None:
    ours = Ours(lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * m.w, n=4))
    ours.w = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    theirs = Theirs(lambda m, x: jnp.fft.irfft(jnp.fft.rfft(x) * m.w[...], n=4), w=nnx.Param(jnp.zeros(3, complex)))
    copy_weights(ours, theirs)
    assert_parity(ours, theirs, X)


class ClippedSGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.01)
        return super().step(closure)


def clipped(limit: float) -> Any:
    """PyTorch's clipping, which adds 1e-6 to the norm."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        norm = jnp.sqrt(sum((array**2).sum() for array in jax.tree.leaves(updates)))
        factor = jnp.minimum(limit / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda array: array * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def test_an_optimiser_may_clip_the_gradients_in_place() -> None:
    ours, theirs = linears(in_torch, in_jax)
    optimizers = (lambda p: ClippedSGD(p, 0.1), optax.chain(clipped(0.01), optax.sgd(0.1)))
    report = compare(ours, theirs, X, optimizers=optimizers)
    assert report.agrees, str(report)


def test_a_learning_rate_that_is_computed_in_float32_is_rounding_and_is_noted() -> None:
    """JAX divides two integers in float32, also with 64 bits."""
    ours, theirs = linears(in_torch, in_jax)

    def rate(count: Any) -> Any:
        return 0.1 * jnp.minimum(1.0, (count + 1) / 5)

    report = compare(ours, theirs, X, optimizers=(lambda p: torch.optim.SGD(p, 0.1 / 5), optax.sgd(rate)))
    assert report.agrees, str(report)
    assert any("computes in float32" in note for note in report.notes)
    wrong = compare(ours, theirs, X, optimizers=(lambda p: torch.optim.SGD(p, 0.1 / 5 * (1 + 1e-5)), optax.sgd(rate)))
    assert wrong.first_divergence.in_update


@pytest.mark.parametrize("seed", range(3))
def test_a_gradient_that_cancels_differs_by_rounding_alone(seed: int) -> None:
    """A bias before a batch norm has the gradient zero, computed from terms that may be large."""
    torch.manual_seed(seed)
    ours = Ours(lambda m, x: m.norm(m.a(x)), a=nn.Linear(4, 6), norm=nn.BatchNorm1d(6)).double()
    with jax.enable_x64(True):
        rngs = nnx.Rngs(0)
        theirs = Theirs(
            lambda m, x: m.norm(m.a(x)),
            a=nnx.Linear(4, 6, rngs=rngs, param_dtype=np.float64),
            norm=nnx.BatchNorm(6, momentum=0.9, rngs=rngs, param_dtype=np.float64),
        )
        for statistic in (theirs.norm.mean, theirs.norm.var):  # nnx keeps them in float32, and warns
            statistic.set_value(statistic.get_value().astype(np.float64))
        copy_weights(ours, theirs)
        x = np.random.default_rng(seed).normal(size=(3, 4)) * 1e-2  # a small variance makes the terms large
        report = compare(ours, theirs, x, train=True, ignore=BIASED)
        assert report.agrees, str(report)
        theirs.a.bias.set_value(theirs.a.bias.get_value() + 1e-6)
        assert not compare(ours, theirs, x, train=True, ignore=BIASED).agrees


def test_a_difference_between_two_layers_accuses_neither() -> None:
    """Without a cause the place is the interval: the second layer may be innocent."""
    ours, theirs = linears(in_torch, lambda m, x: m.b(jnp.sin(m.a(x))))
    divergence = compare(ours, theirs, X).first_divergence
    assert (divergence.where, divergence.causes) == ("a → b", ())


def test_a_label_smoothing_that_is_missing_is_called_0() -> None:
    def smoothed(logits: Any, labels: Any) -> Any:
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    def plain(logits: Any, labels: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    ours, theirs = linears(in_torch, in_jax)
    said = str(compare(ours, theirs, X, loss=(smoothed, plain), targets=np.arange(5) % 3))
    assert "with label_smoothing=0 PyTorch's loss is the nnx model's" in said


def logged(report: ParityReport) -> list[str]:
    return [] if report.first_divergence is None else list(report.first_divergence.causes)


def test_no_label_smoothing_is_made_up_for_a_temperature() -> None:
    def ours_loss(logits: Any, labels: Any) -> Any:
        return F.cross_entropy(logits, labels)

    def their_loss(logits: Any, labels: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits / 2, labels).mean()

    ours, theirs = linears(in_torch, in_jax)
    with torch.no_grad():
        labels = (
            ours(torch.from_numpy(X)).argmax(1).numpy()
        )  # for which a temperature raises the loss, as smoothing does
    report = compare(ours, theirs, X, loss=(ours_loss, their_loss), targets=labels)
    assert not report.agrees
    assert "label_smoothing" not in logged(report)


def test_a_gradient_that_is_cut_where_nothing_reverses_it_is_no_coefficient() -> None:
    ours, theirs = linears(in_torch, lambda m, x: m.b(jax.lax.stop_gradient(jnp.tanh(m.a(x)))))
    report = compare(ours, theirs, X)
    assert report.first_divergence.kind == "gradient"
    assert not logged(report)
