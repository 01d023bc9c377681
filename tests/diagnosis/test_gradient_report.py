"""`domain_gradient_report`: a user's own model, each way to be wrong with its verdict; and what `grl train` says."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grl.experiment.chance import explain_chance
from grl.parity import DomainGradientReport, domain_gradient_report
from tests.support.installed import HAS_FLAX, HAS_TORCH, needs_flax, needs_torch

pytestmark = pytest.mark.trains

RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(16, 2)).astype(np.float32), np.arange(16) % 2
DOMAINS = (np.arange(16) < 8).astype(np.float32)
WEIGHTS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in {"a": (2, 5), "b": (5, 5)}.items()}
HEADS = {name: RNG.normal(size=(5, 1)).astype(np.float32) for name in ("label", "domain")}


class Torch:
    """A user's model in PyTorch; `Jax` has the same names."""

    def __init__(self) -> None:
        import torch

        from grl import torch_impl

        self.framework, self.impl = torch, torch_impl
        self.detach = torch.Tensor.detach

    def clip(self, x: Any) -> Any:
        return self.framework.clamp(x, -1e-3, 1e-3)

    def model(self, reverse: Any, before: Callable[[Any], Any] = lambda x: x) -> Any:
        """A backbone of two layers and two heads; `reverse` is kept as a part, or else called; `before` both heads."""
        torch = self.framework

        class Backbone(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = (torch.nn.Parameter(torch.tensor(WEIGHTS[name])) for name in ("a", "b"))

            def forward(self, x: Any) -> Any:
                return torch.tanh(torch.tanh(x @ self.a) @ self.b)

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.backbone, self.reverse = Backbone(), reverse
                self.label, self.domain = (torch.nn.Parameter(torch.tensor(HEADS[name])) for name in HEADS)

            def forward(self, x: Any) -> tuple[Any, Any]:
                features = before(self.backbone(x))
                return (features @ self.label)[:, 0], (self.reverse(features) @ self.domain)[:, 0]

        return Model()

    def foreign(self, backward: Callable[[Any], Any]) -> tuple[Any, type]:
        """A layer of another's making, and its class."""
        torch = self.framework

        class Rule(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Any) -> Any:
                return x.view_as(x)

            @staticmethod
            def backward(ctx: Any, cotangent: Any) -> Any:
                return backward(cotangent)

        class Foreign(torch.nn.Module):
            def forward(self, x: Any) -> Any:
                return Rule.apply(x)

        return Foreign(), Foreign

    def module_with_backward(self) -> Any:
        class Reverse(self.framework.nn.Module):
            def forward(self, x: Any) -> Any:
                return x

            def backward(self, cotangent: Any) -> Any:
                return -cotangent

        return Reverse()

    def array(self, values: Any) -> Any:
        return self.framework.tensor(values)

    def batch(self) -> Any:
        return self.array(INPUTS)

    def loss(self, logits: Any, targets: Any) -> Any:
        targets = self.framework.tensor(targets, dtype=self.framework.float32)
        return self.framework.nn.functional.binary_cross_entropy_with_logits(logits, targets)


class Jax:
    """A user's model in JAX; `Torch` has the same names."""

    def __init__(self) -> None:
        import jax

        from grl import jax_impl

        self.framework, self.impl = jax, jax_impl
        self.detach = jax.lax.stop_gradient

    def clip(self, x: Any) -> Any:
        return self.framework.numpy.clip(x, -1e-3, 1e-3)

    def model(self, reverse: Any, before: Callable[[Any], Any] = lambda x: x) -> Any:
        from flax import nnx

        jnp = self.framework.numpy

        class Backbone(nnx.Module):
            def __init__(self) -> None:
                self.a, self.b = (nnx.Param(jnp.asarray(WEIGHTS[name])) for name in ("a", "b"))

            def __call__(self, x: Any) -> Any:
                return jnp.tanh(jnp.tanh(x @ self.a[...]) @ self.b[...])

        class Model(nnx.Module):
            def __init__(self) -> None:
                self.backbone, self.reverse = Backbone(), reverse
                self.label, self.domain = (nnx.Param(jnp.asarray(HEADS[name])) for name in HEADS)

            def __call__(self, x: Any) -> tuple[Any, Any]:
                features = before(self.backbone(x))
                return (features @ self.label[...])[:, 0], (self.reverse(features) @ self.domain[...])[:, 0]

        return Model()

    def foreign(self, backward: Callable[[Any], Any]) -> tuple[Any, type]:
        from flax import nnx

        rule = self.framework.custom_vjp(lambda x: x)
        rule.defvjp(lambda x: (x, None), lambda _, cotangent: (backward(cotangent),))

        class Foreign(nnx.Module):
            def __call__(self, x: Any) -> Any:
                return rule(x)

        return Foreign(), Foreign

    def module_with_backward(self) -> Any:
        from flax import nnx

        class Reverse(nnx.Module):
            def __call__(self, x: Any) -> Any:
                return x

            def backward(self, cotangent: Any) -> Any:
                return -cotangent

        return Reverse()

    def array(self, values: Any) -> Any:
        return self.framework.numpy.asarray(values)

    def batch(self) -> Any:
        return self.array(INPUTS)

    def loss(self, logits: Any, targets: Any) -> Any:
        import optax

        return optax.sigmoid_binary_cross_entropy(logits, targets).mean()


@pytest.fixture(
    params=[
        pytest.param(Torch, id="torch", marks=needs_torch),
        pytest.param(Jax, id="jax", marks=needs_flax),
    ]
)
def side(request: pytest.FixtureRequest) -> Any:
    return request.param()


def report(side: Any, reverse: Any, *, weight: float = 1.0, label_weight: float = 1.0, **how: Any) -> Any:
    """The report on the model with this layer, its domain loss multiplied by `weight`."""
    return domain_gradient_report(
        how.pop("model", None) or side.model(reverse),
        side.batch(),
        label_loss=lambda model, x: side.loss(model(x)[0], LABELS) * label_weight,
        domain_loss=lambda model, x: side.loss(model(x)[1], DOMAINS) * weight,
        features=how.pop("features", "backbone"),
        **how,
    )


def test_the_ratio_is_minus_lambda_for_every_parameter(side: Any):
    seen = report(side, side.impl.GRL(0.5), coeff=0.5)
    assert str(seen) == "ok: the domain gradient reaches the feature extractor with the factor −0.5."
    assert [record.name for record in seen.records] == ["backbone.a", "backbone.b"]
    assert [record.ratio for record in (*seen.records, seen.whole)] == pytest.approx([-0.5] * 3)
    norms = [math.hypot(*(getattr(record, name) for record in seen.records)) for name in ("label_norm", "domain_norm")]
    assert norms == pytest.approx([seen.whole.label_norm, seen.whole.domain_norm])
    assert all(-1 < record.cosine < 1 for record in seen.records)
    assert seen.domain_loss > 0


@pytest.mark.skipif(not (HAS_TORCH and HAS_FLAX), reason="needs both frameworks")
def test_both_backends_report_the_same_figures():
    one, other = (report(side, side.impl.GRL(0.5)) for side in (Torch(), Jax()))
    for a, b in zip((*one.records, one.whole), (*other.records, other.whole), strict=True):
        assert a.name == b.name
        for name in ("ratio", "label_norm", "domain_norm", "cosine"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-4), name
    assert (one.verdict, one.reason) == (other.verdict, other.reason)


def test_any_function_of_grl_is_found_by_itself(side: Any):
    reverse = side.impl.gradient_reversal
    assert report(side, lambda x: reverse(x, 0.25)).whole.ratio == pytest.approx(-0.25)
    coeff = np.linspace(0, 1, 16, dtype=np.float32)
    seen = report(side, lambda x: reverse(x, coeff))
    assert seen.verdict == "ok"
    assert seen.reason.endswith(" on average; it differs between samples or parameters.")


def test_an_own_reversal_that_is_compiled_already_is_still_bypassed(side: Any):
    if isinstance(side, Jax):
        from flax import nnx

        model = side.model(side.impl.GRL(0.5))
        compiled = nnx.jit(lambda model, x: model(x))
        compiled(model, side.batch())
        remat = side.framework.checkpoint(lambda x: side.impl.gradient_reversal(x, 0.5))
        for _ in range(2):
            assert report(side, remat).whole.ratio == pytest.approx(-0.5)
    else:
        model = side.model(side.impl.GRL(0.5))
        compiled = side.framework.compile(lambda model, x: model(x), backend="aot_eager")
        compiled(model, side.batch())
    for _ in range(2):
        seen = domain_gradient_report(
            model,
            side.batch(),
            label_loss=lambda model, x: side.loss(compiled(model, x)[0], LABELS),
            domain_loss=lambda model, x: side.loss(compiled(model, x)[1], DOMAINS),
            features="backbone",
        )
        assert (seen.verdict, seen.whole.ratio) == ("ok", pytest.approx(-0.5))


@pytest.mark.parametrize("named", ["name", "object", "class"])
def test_a_foreign_layer_is_found_by_name_object_or_class(side: Any, named: str):
    layer, kind = side.foreign(lambda cotangent: -0.5 * cotangent)
    seen = report(side, layer, layer={"name": "reverse", "object": layer, "class": kind}[named])
    assert (seen.verdict, seen.whole.ratio) == ("ok", pytest.approx(-0.5))
    # And everything is as it was before.
    assert report(side, layer, layer="reverse").whole.ratio == pytest.approx(-0.5)


def theirs(x: Any) -> Any:
    return _RULE[0](x)


_RULE: list[Any] = []


def test_a_foreign_function_is_found_where_it_is_a_global(side: Any):
    _RULE[:] = [lambda x: side.impl.gradient_reversal(x, 0.5)]
    original = theirs
    seen = report(side, lambda x: theirs(x), layer=theirs)
    assert (seen.verdict, seen.whole.ratio) == ("ok", pytest.approx(-0.5))
    assert theirs is original


def test_a_foreign_function_that_is_held_by_the_model_is_said_not_to_be_called_by_its_name(side: Any):
    _RULE[:] = [lambda x: side.impl.gradient_reversal(x, -1.0)]
    seen = report(side, theirs, layer=theirs)
    assert seen.verdict == "skipped"
    assert "the function given by layer= was not called by its global name: the model skips it, or" in seen.reason


@needs_torch
def test_a_foreign_function_of_autograd_is_found_by_its_class():
    import torch

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, coeff: float) -> Any:
            ctx.coeff = coeff
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, cotangent: Any) -> Any:
            return -ctx.coeff * cotangent, None

    apply = Rule.apply
    for layer in (Rule, apply):  # or by its `apply`, under whatever name it is called
        seen = report(Torch(), lambda x: apply(x, 0.5), layer=layer)
        assert (seen.verdict, seen.whole.ratio) == ("ok", pytest.approx(-0.5))


def test_hooks_that_reverse_are_bypassed_with_their_module():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Identity()
    layer.register_full_backward_hook(lambda module, received, given: (-0.5 * received[0],))
    seen = report(Torch(), layer, layer="reverse")
    assert (seen.verdict, seen.whole.ratio) == ("ok", pytest.approx(-0.5))


@needs_flax
def test_a_pytree_of_parameters_is_a_model_in_jax():
    import jax.numpy as jnp

    from grl.jax_impl import gradient_reversal

    side = Jax()
    params = {"backbone": {"a": jnp.asarray(WEIGHTS["a"])}, "heads": {k: jnp.asarray(v) for k, v in HEADS.items()}}

    def logits(params: Any, x: Any, head: str, coeff: float) -> Any:
        return (gradient_reversal(jnp.tanh(x @ params["backbone"]["a"]), coeff) @ params["heads"][head])[:, 0]

    seen = domain_gradient_report(
        params,
        side.batch(),
        label_loss=lambda params, x: side.loss(logits(params, x, "label", -1.0), LABELS),
        domain_loss=lambda params, x: side.loss(logits(params, x, "domain", 0.5), DOMAINS),
        features=lambda name: name.startswith("backbone"),
    )
    assert (seen.verdict, seen.records[0].name, seen.whole.ratio) == ("ok", "backbone.a", pytest.approx(-0.5))


# What is wrong, each with its verdict and its words.

BROKEN: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "no layer": (
        lambda side: {"reverse": lambda x: x},
        "skipped: the domain gradient reaches the feature extractor with the factor +1 and no reversal ran: the domain"
        " classifier is fed the features themselves; name a layer that is not grl's by layer=.",
    ),
    "two layers, λ = 1": (
        lambda side: {"reverse": lambda x: side.impl.gradient_reversal(side.impl.gradient_reversal(x))},
        "sign doubled: a reversal ran, and yet the domain gradient reaches the feature extractor with the factor +1:"
        " there are two layers one after the other, or λ is negative.",
    ),
    "two layers, λ = 0.5": (
        lambda side: {"reverse": lambda x: side.impl.gradient_reversal(side.impl.gradient_reversal(x, 0.5), 0.5)},
        "sign doubled: a reversal ran, and yet the domain gradient reaches the feature extractor with the factor +0.25:"
        " there are two layers one after the other, or λ is negative.",
    ),
    "layer and subtracted loss": (
        lambda side: {"reverse": side.impl.gradient_reversal, "weight": -1.0},
        "sign doubled: the layer reverses (the factor −1) and the domain loss is subtracted as well, so that the"
        " features get better at telling the domains apart: add the losses.",
    ),
    "another λ": (
        lambda side: {"reverse": side.impl.gradient_reversal, "coeff": 0.5},
        "wrong coefficient: the domain gradient reaches the feature extractor with the factor −1, expected −0.5:"
        " the layer holds another λ, or there is more than one layer.",
    ),
    "λ = 0": (
        lambda side: {"reverse": lambda x: side.impl.gradient_reversal(x, 0.0)},
        "vanished: no gradient of the domain loss reaches the feature extractor through the layer, without it there is"
        " one: λ is 0, or x is cut off (detach, no_grad, stop_gradient).",
    ),
    "cut off": (
        lambda side: {"reverse": lambda x: side.impl.gradient_reversal(side.detach(x))},
        "vanished: no gradient of the domain loss reaches the feature extractor through the layer, nor is there one"
        " without it: λ is 0, or x is cut off (detach, no_grad, stop_gradient), or the loss is flat.",
    ),
    "NaN in the layer": (
        lambda side: {"reverse": side.foreign(lambda cotangent: cotangent * math.nan)[0], "layer": "reverse"},
        "not finite: NaN or infinity reaches the feature extractor: it arises in the layer.",
    ),
    "NaN in the loss": (
        lambda side: {"reverse": side.impl.gradient_reversal, "weight": math.nan},
        "not finite: NaN or infinity reaches the feature extractor: the losses give it without the layer too.",
    ),
    "λ = 0.5, and a way around the layer": (
        lambda side: {"reverse": lambda x: side.impl.gradient_reversal(x, 0.5) + 0.25 * x},
        "leaking: a part of the domain gradient, 0.2 times its size without the layer, reaches the feature extractor"
        " beside the layer and is not reversed: the domain classifier, or a second one, is also fed what did not pass"
        " the layer.",
    ),
    "a layer beside what is fed": (
        lambda side: {"reverse": lambda x: side.detach(side.impl.gradient_reversal(x)) + x},
        "skipped: the domain gradient reaches the feature extractor with the factor +1 and no reversal ran: the domain"
        " classifier is fed the features themselves; name a layer that is not grl's by layer=.",
    ),
    "before both heads": (
        lambda side: {"model": side.model(lambda x: x, before=side.impl.gradient_reversal), "reverse": None},
        "label reversed: the label gradient passes the layer too, with the factor −1: the layer stands before both"
        " heads, or it changes the gradient of x itself, by a hook or in place.",
    ),
    "clipping in the backward pass": (
        lambda side: {"reverse": side.foreign(lambda cotangent: side.clip(-cotangent))[0], "layer": "reverse"},
        "not linear: a quarter of the domain loss does not give a quarter of its gradient:"
        " something clips, normalises or rounds within the backward pass of the layer.",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_gets_its_verdict_and_its_cause(side: Any, name: str):
    make, sentence = BROKEN[name]
    assert str(report(side, **make(side))) == sentence


def test_a_reversal_that_differs_between_samples_is_no_leak(side: Any):
    coeff = np.linspace(0.5, 1.5, 16, dtype=np.float32)
    assert report(side, lambda x: side.impl.gradient_reversal(x, coeff)).verdict == "ok"
    around = report(side, lambda x: side.impl.gradient_reversal(x, coeff) + 0.05 * x)
    assert around.verdict == "leaking"


def test_a_foreign_layer_with_a_way_around_it_is_told(side: Any):
    layer, _ = side.foreign(lambda cotangent: -cotangent)
    seen = domain_gradient_report(
        side.model(layer),
        side.batch(),
        label_loss=lambda model, x: side.loss(model(x)[0], LABELS),
        domain_loss=lambda model, x: side.loss(model(x)[1] + model(x)[0], DOMAINS),  # a second, unreversed, classifier
        features="backbone",
        layer="reverse",
    )
    assert seen.verdict == "leaking"
    right = report(side, layer, layer="reverse")
    assert right.verdict == "ok"


def hooked(x: Any) -> Any:
    x.register_hook(lambda cotangent: -cotangent)
    return x


@needs_torch
def test_a_hook_that_reverses_the_label_gradient_too_is_told():
    seen = report(Torch(), lambda x: hooked(x), layer=hooked, coeff=1.0)
    assert (seen.verdict, seen.whole.ratio) == ("label reversed", pytest.approx(-1.0))


@needs_torch
def test_hooks_on_parameters_are_not_blamed_on_the_layer():
    side = Torch()
    model = side.model(side.impl.GRL(0.5))
    for parameter in model.parameters():
        parameter.register_hook(side.clip)
    seen = report(side, None, model=model)
    assert seen.verdict == "not linear"
    assert seen.reason.endswith(" within the backward pass without the layer too, as a hook on a parameter.")


@needs_torch
def test_a_reentrant_checkpoint_is_refused_and_no_other():
    from torch.utils.checkpoint import checkpoint

    side = Torch()
    for reentrant in (False, True):
        model = side.model(side.impl.GRL(0.5))
        forward = model.backbone.forward
        model.backbone.forward = lambda x, forward=forward, reentrant=reentrant: checkpoint(
            forward, x.clone().requires_grad_(), use_reentrant=reentrant
        )
        if reentrant:
            with pytest.raises(ValueError, match=r"^model: got a reentrant checkpoint, .* expected checkpoint\("):
                report(side, None, model=model)
        else:
            assert report(side, None, model=model).verdict == "ok"


def test_a_loss_that_cannot_be_repeated_is_told(side: Any):
    generator = np.random.default_rng(0)
    noise = lambda x: np.float32(generator.normal(size=x.shape))
    seen = report(side, lambda x: side.impl.gradient_reversal(x) + side.array(noise(x)))
    assert seen.verdict == "not repeatable"
    assert seen.reason.startswith("the domain loss is ")
    assert seen.reason.endswith("(NumPy's, a generator of its own), or the layer is no identity.")


@needs_torch
def test_a_hook_that_reverses_is_a_reversal_and_is_named_as_one():
    seen = report(Torch(), lambda x: half_hooked(x * 1.0), coeff=0.5)
    assert str(seen) == (
        "ok: the domain gradient reaches the feature extractor with the factor −0.5, by a tensor hook (register_hook)."
    )


def half_hooked(x: Any) -> Any:
    x.register_hook(lambda cotangent: -0.5 * cotangent)
    return x


def test_a_reversal_after_the_domain_classifier_is_misplaced(side: Any):
    seen = domain_gradient_report(
        side.model(lambda x: x),
        side.batch(),
        label_loss=lambda model, x: side.loss(model(x)[0], LABELS),
        domain_loss=lambda model, x: side.loss(side.impl.gradient_reversal(model(x)[1]), DOMAINS),
        features="backbone",
    )
    assert str(seen) == (
        "misplaced: the reversal stands after trained layers of the domain classifier: domain get the domain gradient"
        " with the factor −1 (expected: +1) and ascend their own loss; put the layer right after the feature extractor."
    )


def test_a_subtracted_loss_without_a_layer_is_misplaced(side: Any):
    seen = report(side, lambda x: x, weight=-1.0)
    assert seen.verdict == "misplaced"
    assert "the factor −1, and the domain classifier (domain) ascends its own loss as well" in seen.reason


def test_sizes_that_do_not_fit_are_told(side: Any):
    reverse = side.impl.gradient_reversal
    exploded = report(side, lambda x: reverse(x, 1e4))
    assert exploded.verdict == "exploded"
    assert "with the factor −1e+04: clip the gradients to a global norm of 1, or lower λ." in exploded.reason
    vanished = report(side, lambda x: reverse(x, 1e-5))
    assert vanished.verdict == "vanished"
    assert vanished.reason.endswith("with the factor −1e−05: λ is near 0, as at the start of a ramp.")
    flat = report(side, reverse, weight=1e-5)
    assert flat.verdict == "vanished"
    assert flat.reason.endswith("with the factor −1: the domain loss is flat.")
    assert report(side, reverse, label_weight=1e-6).verdict == "ok"  # a label loss that is learnt explodes nothing


def test_a_backward_method_on_a_module_is_named(side: Any):
    framework = {Torch: "PyTorch", Jax: "JAX"}[type(side)]
    called = f"Reverse (reverse) has a method `backward`, which {framework} never calls on a Module"
    seen = report(side, side.module_with_backward(), layer="reverse")
    assert str(seen) == (
        "skipped: the layer ran, and the domain gradient reaches the feature extractor with the factor +1 all the same:"
        f" {called}."
    )
    seen = report(side, side.module_with_backward())
    assert seen.verdict == "skipped"
    assert f"is fed the features themselves, or {called}; name a layer that is not grl's by layer=." in seen.reason


def test_the_total_loss_shows_a_subtraction_that_a_sign_does_not(side: Any):
    def total(label: float, domain: float) -> Callable[[Any, Any], Any]:
        def loss(model: Any, x: Any) -> Any:
            return label * side.loss(model(x)[0], LABELS) + domain * side.loss(model(x)[1], DOMAINS)

        return loss

    reverse = side.impl.gradient_reversal
    assert report(side, reverse, total_loss=total(1.0, -1.0)).verdict == "sign doubled"
    # Whatever the weights of the two are, and however the two gradients lie to each other.
    for kind in (reverse, lambda x: reverse(x, 0.01)):
        assert report(side, kind, total_loss=total(0.1, 0.1)).verdict == "ok"
        assert report(side, kind, total_loss=total(9.0, -1.0)).verdict == "sign doubled"


def test_a_negative_lambda_is_no_mistake_where_it_is_expected(side: Any):
    assert report(side, lambda x: side.impl.gradient_reversal(x, -1.0), coeff=-1.0).verdict == "ok"
    assert report(side, lambda x: side.impl.gradient_reversal(x, -1.0)).verdict == "sign doubled"


def test_the_model_and_the_random_numbers_stay_as_they_are():
    torch = pytest.importorskip("torch")
    side = Torch()
    model = side.model(torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5), side.impl.GRL(0.5)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if hasattr(tensor, "clone")}
    state = torch.get_rng_state()
    assert report(side, None, model=model).whole.ratio == pytest.approx(-0.5, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


@needs_torch
def test_buffers_that_are_put_in_the_place_of_others_are_put_back():
    import torch

    class Centred(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centre = torch.nn.Buffer(torch.zeros(5))

        def forward(self, x: Any) -> Any:
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
            return x - self.centre

    side = Torch()
    centred = Centred()
    before = centred.centre
    assert report(side, None, model=side.model(torch.nn.Sequential(side.impl.GRL(), centred))).verdict == "ok"
    assert centred.centre is before
    assert not before.any()


def test_what_it_shows_and_writes(side: Any, tmp_path: Path):
    pytest.importorskip("rich")
    seen = report(side, side.impl.GRL(0.5))
    out = io.StringIO()
    with redirect_stdout(out):
        seen.show()
    for word in ("backbone.a", "all together", "−0.5", "ok: the domain gradient reaches"):
        assert word in out.getvalue()
    seen.write_json(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert set(written) == {"verdict", "reason", "records", "whole", "label_loss", "domain_loss"}
    assert written["records"][0]["ratio"] == seen.records[0].ratio
    report(side, side.impl.gradient_reversal, weight=math.nan).to_json(tmp_path / "nan.json")
    assert json.loads((tmp_path / "nan.json").read_text())["whole"]["ratio"] is None


def test_what_is_neither_model_nor_features_nor_layer_is_refused(side: Any):
    reverse = side.impl.GRL(0.5)
    with pytest.raises(ValueError, match=r"^features: got 'encoder', which names no parameter; expected "):
        report(side, reverse, features="encoder")
    if isinstance(side, Torch):
        frozen = side.model(reverse)
        frozen.backbone.requires_grad_(False)
        with pytest.raises(ValueError, match=r"^features: got 'backbone', which is frozen; expected a part with"):
            report(side, None, model=frozen)
    with pytest.raises(ValueError, match=r"^layer: got 'grl'; expected a submodule of the model, its name, or its"):
        report(side, reverse, layer="grl")
    with pytest.raises(ValueError, match=r"^layer: got <function .* expected a submodule .* or a global function\.$"):
        report(side, reverse, layer=lambda x: x)
    with pytest.raises(TypeError, match=r"^model: got a builtins.str; expected an nn.Module, an nnx.Module or a "):
        report(side, reverse, model="model")


# What `grl train` says.


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    pytest.importorskip("typer")
    pytest.importorskip("safetensors")
    from grl.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: Any) -> str:
        out = io.StringIO()
        with redirect_stdout(out):
            assert main(["train", *map(str, words)]) == 0
        return out.getvalue()

    return run


def backend_of(side: Any) -> str:
    return {Torch: "torch", Jax: "jax"}[type(side)]


def test_training_begins_with_the_verdict_at_the_last_lambda(side: Any, train: Callable[..., str]):
    lines = train("--task", "moons", "--backend", backend_of(side), "--steps", 10).splitlines()
    assert lines[0] == (
        "Reversal at the schedule's last λ, 0.9999: ok: the domain gradient reaches the feature extractor with the"
        " factor −0.9999."
    )
    assert sum("Reversal" in line for line in lines) == 1


def test_training_says_so_if_the_layer_is_lost(side: Any, train: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"grl.{backend_of(side)}_impl.dann.gradient_reversal", lambda x, coeff: x)
    out = train("--task", "moons", "--backend", backend_of(side), "--steps", 10)
    assert out.startswith("Reversal at the schedule's last λ, 0.9999: skipped: ")


def test_the_verdict_changes_nothing_in_the_run(side: Any):
    pytest.importorskip("sklearn")
    from grl.experiment import Config, batches, build_trainer, load_data

    config = Config.recommended("moons", backend=backend_of(side))
    task = load_data(config)
    trainer = build_trainer(task, config)
    before = trainer.weights()
    report = trainer.report_gradients(*next(batches(task, config)), 0.3)
    assert isinstance(report, DomainGradientReport)
    assert report.whole.ratio == pytest.approx(-0.3)
    assert all(np.array_equal(before[name], array) for name, array in trainer.weights().items())


def test_a_domain_loss_that_is_stuck_is_explained_at_the_end(side: Any, train: Callable[..., str]):
    np.savez("alike.npz", x_source=np.zeros((8, 3)), y_source=np.arange(8) % 2, x_target=np.zeros((8, 3)))
    words = ("--data", "alike.npz", "--backend", backend_of(side), "--log-every", 10)
    explained = "the domain loss stayed within 1 % of ln 2 = 0.693, which is chance"
    assert explained in train(*words, "--steps", 200)
    assert explained not in train(*words, "--steps", 100)  # too short to mean anything
    assert "Reversal" not in train(*words, "--steps", 1, "--method", "source-only")


def history(*losses: float | None, every: int = 10) -> list[dict[str, Any]]:
    return [{"step": every * (i + 1), "domain_loss": loss} for i, loss in enumerate(losses)]


def test_chance_from_the_first_step_on_and_chance_that_was_reached_are_told_apart():
    chance = math.log(2)
    assert explain_chance(history(*[chance] * 50)).startswith(
        "From step 10 to 500 the domain loss stayed within 1 % of ln 2 = 0.693, which is chance, and so it was from the"
        " first record on: the domain classifier learns nothing"
    )
    reached = explain_chance(history(0.3, *[chance * 1.009] * 49))
    assert reached.startswith("From step 20 to 500 the domain loss stayed within 1 % of ln 2 = 0.693")
    assert "That is the goal" in reached


@pytest.mark.parametrize(
    "losses",
    [
        [],
        [math.log(2)],
        [None] * 50,
        [math.log(2)] * 10,  # 90 steps
        [math.log(2)] * 15 + [0.3] * 85,  # 140 steps of 1000
        [math.log(2), 0.5] * 25,
        [math.log(2) * 1.011] * 50,
    ],
)
def test_chance_that_did_not_last_is_not_explained(losses: list[float | None]):
    assert explain_chance(history(*losses)) is None
