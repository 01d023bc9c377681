"""A loss that is not finite: the run stops at that very step and keeps it, or goes on without it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")

from grl.datasets import Task
from grl.experiment import FaultError, batches, build_trainer, load_checkpoint, load_data, load_weights, train
from grl.experiment.config import Config
from grl.weights_file import save_weights
from tests.support.installed import INSTALLED, each_backend

pytestmark = pytest.mark.trains

STEPS = 24


def poisoned(domain: str) -> Task:
    """Small images; one of them is so large that its convolution overflows, and batch norm makes NaN of it."""
    generator = np.random.default_rng(0)
    x_source, x_target = (generator.normal(size=(60, 1, 4, 4)).astype(np.float32) for _ in range(2))
    {"source": x_source, "target": x_target}[domain][17] = 3e38
    return Task("poisoned", x_source, np.arange(60) % 2, x_target, None, None, None, 2)


def config_of(backend: str, **settings: object) -> Config:
    small = {
        "steps": STEPS,
        "batch_size": 4,
        "log_every": 1,
        "channels": (2,),
        "label_hidden": (),
        "domain_hidden": (3,),
    }
    return Config(backend=backend, **{**small, **settings})


def bad_steps(task: Task, config: Config) -> list[int]:
    """The steps, counted from 1, whose batch has the poison."""
    stream = islice(batches(task, config), config.steps)
    return [step for step, (x, _, x_target) in enumerate(stream, 1) if max(x.max(), x_target.max()) > 1e38]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")  # in the scores' logits
@each_backend
def test_the_run_stops_at_the_step_and_keeps_its_batch_its_gradients_and_the_weights_before(
    backend: str, tmp_path: Path
) -> None:
    task, config = poisoned("target"), config_of(backend)
    bad = bad_steps(task, config)[0]
    assert bad % 10 > 1, "inside of a chunk"
    with pytest.raises(FaultError, match=f"^step {bad}: the .* loss is nan") as error:
        train(config, task=task, out=tmp_path)
    fault = error.value.fault
    assert fault.step == bad
    assert fault.coeff == config.coeff(bad - 1)
    before = build_trainer(task, config)
    stream = batches(task, config)
    for step in range(bad - 1):
        one = (array[None] for array in next(stream))
        before.run(*one, np.array([config.coeff(step)]), np.array([config.rates(step)]))
    batch, expected = np.load(tmp_path / "nan-batch.npz"), next(stream)
    for name, array in zip(("x", "y", "x_target"), expected, strict=True):
        np.testing.assert_array_equal(batch[name], array)
    weights = load_weights(tmp_path / "nan-weights.safetensors")
    for name, array in before.weights().items():
        np.testing.assert_array_equal(weights[name], array)
    report = json.loads((tmp_path / "nan-report.json").read_text())
    assert report["step"] == bad
    assert "nan" in (report["label_loss"], report["domain_loss"])
    assert report["reversal"]["verdict"] == "not finite"
    assert len(report["reversal"]["records"]) == 4
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, (bad - 1) // 10 * 10 + 1))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")  # in the scores' logits
@each_backend
def test_skipped_steps_are_not_applied_and_counted(backend: str, tmp_path: Path) -> None:
    task, config = poisoned("source"), config_of(backend, on_nan="skip", checkpoint_every=STEPS, optimizer="sgd")
    bad = bad_steps(task, config)
    result = train(config, task=task, out=tmp_path)
    assert result.metrics["skipped_steps"] == len(bad) > 0
    assert [r["step"] for r in result.metrics["history"] if r["label_loss"] is None] == bad
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.done.skipped == len(bad)
    if backend == INSTALLED[0]:
        stopping = train(replace(config, on_nan="stop", checkpoint_every=None), task=task, resume=checkpoint)
        assert stopping.metrics["skipped_steps"] == len(bad), "it says so even where no more would be"
    assert all(np.isfinite(array).all() for array in result.weights.values())
    by_hand = build_trainer(task, config)
    for step, batch in enumerate(islice(batches(task, config), STEPS)):
        if step + 1 not in bad:
            one = (array[None] for array in batch)
            by_hand.run(*one, np.array([config.coeff(step)]), np.array([config.rates(step)]))
    for name, array in by_hand.weights().items():
        np.testing.assert_allclose(result.weights[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@each_backend
def test_a_step_whose_loss_is_finite_but_not_the_weights_after_it_is_the_one_that_is_named(
    backend: str, tmp_path: Path
) -> None:
    """No later batch is to be blamed: features of 0 give a loss of ln 2, and a gradient as large as the classifier."""
    config = Config.recommended("moons", backend=backend, steps=2, method="source-only", optimizer="sgd", hidden=(8,))
    weights = build_trainer(load_data(config), config).weights()
    for name, array in weights.items():
        array *= {"backbone": 0, "label_classifier": 1e37}.get(name.partition(".")[0], 1)
    weights["label_classifier.layers.0.bias"] *= 0
    save_weights(tmp_path / "start.safetensors", weights)
    config = replace(config, start=str(tmp_path / "start.safetensors"), learning_rate=1e9)
    with pytest.raises(FaultError, match=r"^step 1: the losses are finite, but not the weights after it; try") as error:
        train(config)
    assert error.value.fault.label_loss == pytest.approx(np.log(2), abs=1e-5)
    assert error.value.fault.report is None
    for name, array in weights.items():
        np.testing.assert_array_equal(error.value.fault.weights[name], array)


def test_where_all_is_well_the_key_is_not_there() -> None:
    if not INSTALLED:
        pytest.skip("needs a framework")
    metrics = train(Config.recommended("moons", backend=INSTALLED[0], steps=3)).metrics
    assert "skipped_steps" not in metrics
