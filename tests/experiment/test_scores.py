"""What the scores are scores of: a model whose every answer is known, on data where each set has another one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from grl.datasets import Task
from grl.experiment import batches, build_trainer, load_data
from grl.experiment.config import Config
from grl.experiment.scores import proxy_a_distance, score
from grl.experiment.trainer import Prediction
from tests.support.installed import each_backend

pytestmark = pytest.mark.trains


def points(right: int, of: int, domain: float) -> Any:
    """Inputs (of, 2) whose first number says the class, 1 in the first `right` of them, and the second the domain."""
    return np.stack([np.where(np.arange(of) < right, 1.0, -1.0), np.full(of, domain)], 1).astype(np.float32)


def test_each_accuracy_is_of_its_own_set_in_its_whole() -> None:
    def predict(x: Any) -> Prediction:
        return Prediction(x, np.stack([np.zeros(len(x)), x[:, 0]], 1), x[:, 1])

    ones = np.ones(1200, np.int64)
    x_target = np.concatenate([points(5, 5, 1.0), points(0, 3, -1.0)])
    task = Task("known", points(900, 1200, -1.0), ones, x_target, points(3, 10, 9.0), ones[:10], ones[:8], 2)
    scores = score(SimpleNamespace(predict=predict), task, Config(method="dann"))
    assert scores["source_accuracy"] == 0.75, "more samples than are predicted at once"
    assert scores["target_accuracy"] == 0.3, "of x_test; of x_target it is 0.625"
    assert scores["domain_accuracy"] == (1 + 5 / 8) / 2
    assert score(SimpleNamespace(predict=predict), task, Config(method="target"))["domain_accuracy"] is None


def test_proxy_a_distance_is_scored_on_features_that_its_classifier_has_not_seen() -> None:
    """In 80 dimensions a line parts 50 points of noise from 50 others, but not the next 50."""
    source, target = np.random.default_rng(0).normal(size=(2, 100, 80))
    assert abs(proxy_a_distance(source, target)) < 0.7


@each_backend
def test_the_accuracy_of_a_step_is_that_of_its_batch_before_the_update(backend: str) -> None:
    config = Config.recommended("moons", backend=backend)  # without batch norm, which sees another batch in evaluation
    task = load_data(config)
    trainer = build_trainer(task, config)
    x, y, x_target = next(batches(task, config))
    right = trainer.predict(x)[1].argmax(1) == y
    _, _, accuracy = trainer.run(x[None], y[None], x_target[None], np.ones(1), np.array([[0.5, 0.5]]))
    assert accuracy == pytest.approx(right.mean())
    assert (trainer.predict(x)[1].argmax(1) == y).mean() != pytest.approx(right.mean()), "the update matters"
