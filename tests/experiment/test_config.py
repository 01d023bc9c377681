"""The settings of an experiment: what is accepted, what becomes of it, and λ and the learning rates at each step."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grl.datasets import Task
from grl.experiment import load_data
from grl.experiment.backend import build_architecture
from grl.experiment.config import Config, ConfigError
from grl.experiment.ramp import Ramp, parse_ramp
from grl.schedules import LinearSchedule


def test_numpys_numbers_are_settings_too_and_are_written_as_pythons() -> None:
    given = {"steps": np.int64(7), "batch_size": np.uint8(4), "checkpoint_every": np.int32(2), "seed": np.int16(0)}
    reals = {"learning_rate": np.float32(0.5), "clip_norm": np.float64(0.25), "momentum": 0, "decay": Fraction(3, 2)}
    sizes = {"channels": [np.int64(3)], "hidden": (np.int8(5), 6), "domain_hidden": np.arange(1, 3).tolist()}
    config = Config(**given, **reals, **sizes)
    assert Config.from_json(json.loads(json.dumps(asdict(config)))) == config
    assert [type(getattr(config, name)) for name in (*given, *reals)] == [int] * 4 + [float] * 4
    assert [type(size) for name in sizes for size in getattr(config, name)] == [int] * 5


@pytest.mark.parametrize(("settings", "message"), [
    ({"schedule": "linear:1"}, r"schedule: got 'linear:1'; expected dann\[:GAMMA\], linear\[:START:END\] or"),
    ({"schedule": "dann:1:2"}, "schedule: got 'dann:1:2'"),
    ({"schedule": "constant:inf"}, "schedule: got 'constant:inf'"),
    ({"decay": 10**400}, r"decay: got 10000\d* …; expected a finite number from 0\."),
    ({"learning_rate": True}, "learning_rate: got True; expected a finite number above 0"),
    ({"learning_rate": "1"}, "learning_rate: got '1'"),
    ({"steps": 2.0}, r"steps: got 2\.0; expected an integer from 1"),
    ({"hidden": (4, 0)}, "hidden: got 0; expected an integer from 1"),
    ({"hidden": ()}, "hidden: got none; expected one size for each layer"),
])  # fmt: skip
def test_what_cannot_be_used_is_named_with_what_is_accepted(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        Config(**settings)


def test_what_is_no_set_of_settings_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^config: got \[1\]; expected an object with exactly the fields of Config\."
    ):
        Config.from_json([1])
    settings = asdict(Config()) | {"stesp": 3}
    del settings["seed"]
    with pytest.raises(ConfigError, match=r"^config: missing or unknown settings: 'seed', 'stesp'; expected exactly"):
        Config.from_json(settings)


def test_coefficient_and_rates_follow_the_settings() -> None:
    config = Config(steps=100, learning_rate=0.5, classifier_learning_rate=0.25, decay=10.0)
    assert config.rates(50) == (0.5 / 6**0.75, 0.25 / 6**0.75)
    assert Config(steps=100, learning_rate=0.5, decay=10.0).rates(50) == (0.5 / 6**0.75,) * 2
    coeffs = {text: Config(steps=100, schedule=text).coeff(50) for text in ("linear:0.2:0.6", "dann:1", "constant:3")}
    assert coeffs == pytest.approx({"linear:0.2:0.6": 0.4, "dann:1": 2 / (1 + np.exp(-0.5)) - 1, "constant:3": 3.0})
    assert Config(steps=100, schedule="linear").coeff(50) == 0.5
    assert Config(steps=100, schedule="constant:3", method="source-only").coeff(50) == 0.0


def test_a_schedule_is_parsed_once_and_not_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def parse(text: str, steps: int) -> Ramp:
        parsed.append(text)
        return parse_ramp(text, steps)

    monkeypatch.setattr("grl.experiment.config.parse_ramp", parse)
    config = Config(steps=100, schedule="linear:0:0.5")
    assert [config.coeff(step) for step in range(101)] == [LinearSchedule(100, 0.0, 0.5)(step) for step in range(101)]
    assert len(parsed) == 2, "once to refuse a wrong one, once to use it"
    assert asdict(config)["schedule"] == "linear:0:0.5"
    assert replace(config, schedule="constant:3").coeff(50) == 3.0


def test_the_memory_for_data_is_that_of_the_settings(tmp_path: Path) -> None:
    path, x = tmp_path / "mine.npz", np.zeros((6, 2), np.float32)
    np.savez(path, x_source=x, y_source=np.arange(6) % 2, x_target=x)
    kinds = {m: type(load_data(Config(data=str(path), data_memory=m)).x_source.parts[0].where) for m in (0, 1024)}
    assert kinds[1024] is np.ndarray
    assert kinds[0] is not np.ndarray, "a file"


def test_a_batch_of_one_is_refused_where_batch_norm_would_see_one_value_of_a_channel() -> None:
    """Of all processes together: their shares of a batch may be of one sample."""

    def build(batch_size: int, side: int = 4) -> None:
        x = np.zeros((3, 1, side, side), np.float32)
        task = Task("tiny", x, np.arange(3) % 2, x, None, None, None, 2)
        build_architecture(task, Config(batch_size=batch_size))

    with pytest.raises(ConfigError, match=r"^batch_size: got 1 for tiny, whose last feature map is of 1×1; expected"):
        build(1)
    build(2)
    build(1, side=8)
