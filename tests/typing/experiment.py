"""An experiment from its settings to its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

from numpy.typing import NDArray

from grl import GrlError
from grl.datasets import Task
from grl.experiment import Config, Result, Update, load_data, load_weights, report_gradients, train
from grl.parity import DomainGradientReport


def run(config: Config) -> None:
    def follow(update: Update) -> None:
        assert_type(update.step, int)
        assert_type(update.label_loss, float | None)

    result = train(config, progress=follow, out=Path("runs"), stop=lambda: False)
    assert_type(result, Result)
    assert_type(result.metrics, dict[str, Any])
    assert_type(result.weights, dict[str, NDArray[Any]])
    assert_type(report_gradients(config), DomainGradientReport)


def settings() -> None:
    config = Config(backend="torch", task="moons", method="dann", steps=100)
    assert_type(config.steps, int)
    assert_type(config.coeff(3), float)
    assert_type(load_data(config), Task)


def files(path: Path) -> None:
    try:
        assert_type(load_weights(path), dict[str, NDArray[Any]])
    except GrlError as error:
        assert_type(error, GrlError)
