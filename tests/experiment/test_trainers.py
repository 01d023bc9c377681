"""Both trainers keep the same promises: the names of their state, and that they refuse a state that does not fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from grl.arrays import Weights
from grl.datasets import Task
from grl.experiment import CheckpointError, build_trainer
from grl.experiment.architecture import Architecture, initial_weights
from grl.experiment.backend import build_architecture, import_backend
from grl.experiment.checkpoint_checks import state_shapes
from grl.experiment.config import Config
from grl.experiment.trainer import BLOCK, Trainer, predict
from tests.support.installed import each_backend

pytestmark = pytest.mark.trains

IMAGES = np.random.default_rng(0).normal(size=(6, 1, 4, 4)).astype(np.float32)
TASK = Task("images", IMAGES, np.arange(6) % 2, IMAGES, None, None, None, 2)
# With batch norm, so that there are statistics besides the parameters.
SMALL = {"batch_size": 4, "channels": (2,), "label_hidden": (), "domain_hidden": (3,)}


def trained(config: Config) -> Trainer:
    """Return a trainer after one step."""
    trainer = build_trainer(TASK, config)
    trainer.run(IMAGES[None, :4], TASK.y_source[None, :4], IMAGES[None, :4], np.ones(1), np.full((1, 2), 0.1))
    return trainer


def misfits(arrays: Weights, name: str) -> Iterator[tuple[Weights, str]]:
    """Yield arrays that do not fit, and the sentence that says so."""
    without = {key: array for key, array in arrays.items() if key != name}
    yield without, f"{name!r} is missing."
    yield arrays | {"surplus": np.zeros(1)}, "'surplus' has no place in this network."
    renamed = f"a{name}"  # sorted before the right name, so that the message is about the wrong one
    yield without | {renamed: arrays[name]}, f"{renamed!r} has no place in this network."
    shape = arrays[name].shape
    # One number: PyTorch would copy it to every place.
    yield arrays | {name: np.ones((1,) * len(shape))}, f"{name!r} is of shape {(1,) * len(shape)}; expected {shape}."


@each_backend
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_state_has_the_same_names_and_shapes_in_both_backends(backend: str, optimizer: str) -> None:
    config = Config(backend=backend, optimizer=optimizer, **SMALL)
    state = trained(config).state()
    expected = state_shapes(build_architecture(TASK, config), optimizer)
    assert {name: array.shape for name, array in state.items()} == expected


@each_backend
@pytest.mark.parametrize("name", [
    "model/backbone.convolutions.0.weight", "model/backbone.norms.0.running_var",
    "exp_avg/domain_classifier.layers.0.bias", "exp_avg_sq/backbone.convolutions.0.weight",
])  # fmt: skip
def test_a_state_with_a_name_that_is_missing_or_unknown_is_refused_and_nothing_is_loaded(
    backend: str, name: str
) -> None:
    trainer = trained(Config(backend=backend, **SMALL))
    before = trainer.state()
    state = {key: array + 1 for key, array in before.items()}
    for misfit, message in misfits(state, name):
        with pytest.raises(CheckpointError) as refusal:
            trainer.load_state(misfit)
        assert str(refusal.value) == f"state: {message}"
    for key, array in trainer.state().items():
        np.testing.assert_array_equal(array, before[key])
    trainer.load_state(state)
    for key, array in trainer.state().items():
        np.testing.assert_array_equal(array, state[key])


@each_backend
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_state_of_the_other_optimiser_is_refused(backend: str, optimizer: str) -> None:
    state = trained(Config(backend=backend, optimizer=optimizer, **SMALL)).state()
    other = {"adam": "sgd", "sgd": "adam"}[optimizer]
    trainer = build_trainer(TASK, Config(backend=backend, optimizer=other, **SMALL))
    with pytest.raises(CheckpointError, match=r"^state: '.*' (is missing|has no place in this network)"):
        trainer.load_state(state)


@each_backend
@pytest.mark.parametrize("name", ["backbone.convolutions.0.weight", "backbone.norms.0.running_mean"])
def test_initial_weights_with_a_name_that_is_missing_or_unknown_are_refused(backend: str, name: str) -> None:
    config = Config(backend=backend, **SMALL)
    architecture = build_architecture(TASK, config)
    for misfit, message in misfits(initial_weights(architecture, 0), name):
        with pytest.raises(CheckpointError) as refusal:
            import_backend(backend).Trainer(architecture, config, misfit)
        assert str(refusal.value) == f"weights: {message}"


@each_backend
def test_a_trainer_returns_to_its_last_mark(backend: str) -> None:
    trainer = trained(Config(backend=backend, **SMALL))
    states = []
    for _ in range(2):
        trainer.mark()
        states.append(trainer.state())
        trainer.run(IMAGES[None, :4], TASK.y_source[None, :4], IMAGES[None, :4], np.ones(1), np.full((1, 2), 0.1))
    for _ in range(2):
        trainer.rewind()
        for name, array in trainer.state().items():
            np.testing.assert_array_equal(array, states[-1][name])
    assert not np.array_equal(states[0]["step"], states[1]["step"])


@each_backend
@pytest.mark.parametrize("count", [1, BLOCK, BLOCK + 1])
def test_predictions_in_blocks_are_those_of_the_samples(backend: str, count: int) -> None:
    x = np.random.default_rng(1).normal(size=(count, 2)).astype(np.float32)
    task = Task("points", x, np.arange(count) % 2, x, None, None, None, 2)
    trainer = build_trainer(task, Config(backend=backend, dtype="float64", batch_size=4))
    prediction = predict(trainer, x)
    assert prediction.features.shape == (count, Architecture((2,), 2).output_dim)
    assert prediction.class_logits.shape == (count, 2)
    assert prediction.domain_logits.shape == (count,)
    last = trainer.predict(x[-1:])
    for whole, single in zip(prediction, last, strict=True):
        np.testing.assert_allclose(whole[-1:], single, rtol=1e-12)
