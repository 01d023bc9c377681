"""`compare_training`: rounding and chaos are told apart from a bug, and a bug has its step and its cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
optax = pytest.importorskip("optax")

import torch.nn.functional as F
from torch import nn

from grl.parity import TrainingReport, compare_training, copy_weights

pytestmark = pytest.mark.trains

RNG = np.random.default_rng(0)
BATCHES = [(RNG.normal(size=(8, 4)).astype(np.float32), RNG.integers(0, 3, 8)) for _ in range(3)]
STEPS = 8


class Theirs(nnx.Module):
    def __init__(self) -> None:
        self.first, self.last = (nnx.Linear(*sizes, rngs=nnx.Rngs(0)) for sizes in ((4, 6), (6, 3)))

    def __call__(self, x: Any) -> Any:
        return self.last(jax.numpy.tanh(self.first(x)))


def jax_loss(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def trained(ours: Any, theirs: Any, steps: int = STEPS) -> TrainingReport:
    """Compare the trainings of a small network.

    Args:
        ours: parameters -> PyTorch's optimiser, or a scheduler of it.
        theirs: optax's.
        steps: how many.
    """
    torch.manual_seed(0)
    names = {"0": "first", "2": "last"}
    model, port = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), Theirs()
    copy_weights(model, port, names=names)
    before = [p.clone() for p in model.parameters()]
    report = compare_training(
        model, port, BATCHES, loss=(F.cross_entropy, jax_loss), optimizers=(ours, theirs), steps=steps, names=names
    )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    return report


def cosine(parameters: Any) -> Any:
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


@pytest.mark.parametrize(("ours", "theirs"), [
    (lambda p: torch.optim.Adam(p, 1e-2), optax.adam(1e-2)),
    (lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1), optax.adamw(1e-2, weight_decay=0.1)),
    (cosine, optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9, nesterov=True)),
], ids=["Adam", "AdamW", "SGD with a schedule"])  # fmt: skip
def test_a_right_port_parts_by_rounding_alone(ours: Any, theirs: Any) -> None:
    report = trained(ours, theirs)
    assert report.verdict == "rounding", str(report)
    assert report.agrees
    assert max(report.gaps["parameters"].double) < 1e-12
    assert 1e-9 < max(report.gaps["parameters"].single) < 1e-3
    assert len(report.losses["torch"]) == STEPS


def test_a_dropout_of_one_side_is_a_bug_and_no_chaos() -> None:
    torch.manual_seed(0)
    model, port = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 3)), Theirs()
    names = {"0": "first", "3": "last"}
    copy_weights(model, port, names=names)
    before = torch.get_rng_state()
    optimizers = torch.optim.SGD(model.parameters(), 0.1), optax.sgd(0.1)
    report = compare_training(
        model, port, BATCHES, loss=(F.cross_entropy, jax_loss), optimizers=optimizers, names=names
    )
    assert report.bug_step == 1
    assert report.causes == ("dropout_active",)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_parameter_that_one_side_freezes_is_a_bug_and_is_named() -> None:
    torch.manual_seed(0)
    model, port = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), Theirs()
    names = {"0": "first", "2": "last"}
    copy_weights(model, port, names=names)
    model[0].requires_grad_(False)
    given: dict[str, Any] = {"loss": (F.cross_entropy, jax_loss), "names": names}
    ours = torch.optim.SGD(model[2].parameters(), 0.1)
    report = compare_training(model, port, BATCHES[:1], optimizers=(ours, optax.sgd(0.1)), **given)
    assert report.bug_step == 1
    assert "Not compared: 0.weight, 0.bias (with a gradient on one side alone)" in report.reason
    head = nnx.Optimizer(port, optax.sgd(0.1), wrt=nnx.All(nnx.Param, nnx.PathContains("last")))
    assert compare_training(model, port, BATCHES[:1], optimizers=(ours, head), **given).agrees


def plateau(parameters: Any) -> Any:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(parameters, 0.1))


def test_batches_may_be_lists_and_a_scheduler_may_look_at_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.BATCHES", [list(batch) for batch in BATCHES])
    assert trained(plateau, optax.sgd(0.1), steps=2).agrees


def test_chaos_is_no_bug() -> None:
    report = trained(lambda p: torch.optim.SGD(p, 60.0), optax.sgd(60.0), steps=40)
    gaps = report.gaps["parameters"]
    assert max(gaps.single) > 1e-3
    assert report.verdict == "rounding", str(report)


def test_a_wrong_schedule_is_a_bug_from_its_first_wrong_step() -> None:
    report = trained(cosine, optax.sgd(optax.cosine_decay_schedule(0.1, STEPS - 1), momentum=0.9, nesterov=True))
    assert report.bug_step == 2  # the first rate is the same
    assert report.verdict == "bug from step 2"
    assert "schedules" in report.reason


def test_a_weight_decay_in_the_wrong_place_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = trained(lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1), optax.adamw(1e-2, weight_decay=0.1), 3)
    assert report.bug_step == 1
    assert report.causes[0] == "weight_decay"
    report.to_json(tmp_path / "training.json")
    data = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert data["verdict"] == "bug from step 1"
    assert data["causes"][0]["identifier"] == "weight_decay"
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    report.show()
    assert "Bug from step 1" in " ".join(capsys.readouterr().out.split())
    report.plot(tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG\r\n")
