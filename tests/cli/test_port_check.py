"""`grl port-check`: what it prints and writes, its exit status, and how it refuses."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("torch")
pytest.importorskip("flax.nnx")

from grl.cli import main

pytestmark = pytest.mark.trains

MODELS = """
from torch import nn
from flax import nnx

def make_torch():
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))

class Net(nnx.Module):
    def __init__(self, padding):
        self.conv = nnx.Conv(3, 4, (3, 3), 2, padding=padding, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(64, 5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.fc(nnx.relu(self.conv(x)).reshape(len(x), -1))

def make_nnx():
    return Net(1)

def make_wrong():
    return Net("SAME")

def make_no_model():
    return 3

def raises():
    raise RuntimeError("no\\nmodel")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    (tmp_path / "broken.npz").write_text("no archive", encoding="utf-8")
    np.savez(tmp_path / "batch.npz", x=np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32))
    np.savez(tmp_path / "wide.npz", x=np.zeros((2, 3, 9, 30), np.float32))
    return tmp_path


def port_check(*words: Any) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["port-check", *map(str, words)])
    return status, " ".join(out.getvalue().split()), err.getvalue()


def test_agreement_is_status_0(here: Path) -> None:
    status, out, err = port_check("models.py:make_torch", "models.py:make_nnx", "--inputs", "batch.npz")
    assert (status, err) == (0, "")
    assert "No divergence" in out


def test_a_divergence_is_status_1_with_its_cause(here: Path) -> None:
    words = ("--inputs", "batch.npz", "--json", "report.json", "--png", "report.png")
    status, out, err = port_check("models.py:make_torch", "models.py:make_wrong", *words)
    assert (status, err) == (1, "")
    assert "The layers pad differently" in out
    assert json.loads(Path("report.json").read_text(encoding="utf-8"))["agrees"] is False
    assert Path("report.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(("words", "says"), [
    ("nowhere.py:make models.py:make_nnx --inputs batch.npz", "factory: no such file: nowhere.py."),
    ("models.py:nothing models.py:make_nnx --inputs batch.npz", "factory: models.py has no function nothing."),
    ("models.py models.py:make_nnx --inputs batch.npz", "factory: got 'models.py'; expected path.py:name."),
    ("models.py:raises models.py:make_nnx --inputs batch.npz", "models.py:raises raises RuntimeError: no model."),
    ("models.py:make_torch models.py:make_no_model --inputs batch.npz",
     "the weights cannot be carried across: TypeError: target: got a builtins.int; "),
    ("models.py:make_torch models.py:make_nnx --inputs no.npz", "--inputs: no such file: no.npz."),
    ("models.py:make_torch models.py:make_nnx --inputs broken.npz",
     "--inputs: broken.npz cannot be read; expected an .npz of numbers."),
    ("models.py:make_torch models.py:make_nnx --inputs wide.npz", "the models cannot be compared: RuntimeError: "),
    ("models.py:make_torch models.py:make_nnx --inputs batch.npz --layout HWC",
     "the models cannot be compared: ValueError: layout: got 'HWC'; expected NCHW or NHWC."),
])  # fmt: skip
def test_bad_use_is_status_2_and_one_sentence(here: Path, words: str, says: str) -> None:
    status, out, err = port_check(*words.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"grl: {says}")
    assert err.count("\n") == 1
