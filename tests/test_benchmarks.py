"""The benchmarks measure what they say: the statistics, the check of every result, and the command end to end."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def a_row(form: str, samples: list[float], floor: tuple[str, str] | None = None) -> Any:
    from benchmarks.record import Row

    return Row("op", "torch", form, "ours", "forward", "ns", {"bytes": 256}, samples, floor)


def test_ratios_are_of_the_same_round() -> None:
    from benchmarks.record import relate, summarise

    floor, mine = a_row("floor", [1.0, 10.0, 2.0]), a_row("mine", [2.0, 20.0, 5.0], ("floor", "forward"))
    relate([floor, mine])
    assert mine.ratio == [2.0, 2.0, 2.5]
    found = summarise([1, 2, 3, 4, 5])
    assert (found.q1, found.median, found.q3) == (2, 3, 4)


def test_rounds_are_interleaved_and_a_call_that_raises_has_no_samples() -> None:
    from benchmarks.timing import Call, HostClock, interleave

    seen: list[str] = []
    calls = {name: Call(seen.append, [(name,)], HostClock()) for name in "ab"}
    calls["bad"] = Call(lambda: 1 / 0, [()], HostClock())
    samples, failures = interleave(calls, rounds=(4, 4), repeat=1)
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4}
    assert isinstance(failures["bad"], ZeroDivisionError)
    timed = seen[2:]  # after the calibration; each sample is two calls: a warm one and a timed one
    assert all({timed[i], timed[i + 2]} == {"a", "b"} for i in range(0, len(timed), 4))


@needs_torch
@pytest.mark.parametrize("broken", ["forward", "backward"])
def test_a_form_with_a_wrong_result_is_caught(broken: str) -> None:
    from benchmarks.forms import Form, WrongResultError
    from benchmarks.forms_torch import TorchBackend
    from grl.torch_impl import gradient_reversal

    backend = TorchBackend("cpu")
    inputs = backend.inputs(256, "float32", 2)
    layers = {"forward": lambda x, c: gradient_reversal(x, c) + 1e-3, "backward": lambda x, c: gradient_reversal(x, -c)}
    form = Form("broken", "ours", lambda c: (layers[broken], (c,)))
    for measure in ("forward", "backward"):
        (call,) = backend.calls(form, inputs, 0.7, measure)
        if measure == broken:
            with pytest.raises(WrongResultError, match=broken):
                backend.check(form, inputs, 0.7, measure, call)
        else:
            backend.check(form, inputs, 0.7, measure, call)


@needs_torch
def test_the_command_writes_every_sample_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import main, reach
    from benchmarks.record import find, load

    assert main(["--device", "cpu", "--smoke", "--out", str(tmp_path)]) == 0
    machine, rows = load(tmp_path / "results.json")
    assert machine["device"] == "cpu"
    assert machine["versions"]["torch"]
    assert (tmp_path / "op.png").read_bytes().startswith(b"\x89PNG")
    ours = find(rows, framework="torch", form="gradient_reversal", measure="forward", coeff="number")
    assert len(ours) == 1
    assert len(ours[0].samples) == 2
    assert not [row.form for row in rows if row.kind == "ours" and row.failure], "ours run everywhere"
    assert "gradient_reversal" in capsys.readouterr().out
    assert reach(rows) == []  # none of its sizes were run
    text = json.loads((tmp_path / "results.json").read_text())
    assert text["rows"][0].keys() >= {"samples", "summary", "ratio", "failure"}


def test_a_file_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    from benchmarks.record import load

    (tmp_path / "other.json").write_text('{"rows": 3}')
    with pytest.raises(ValueError, match="not the results of a benchmark run"):
        load(tmp_path / "other.json")


def test_reach_counts_a_seed_once_both_methods_have_run() -> None:
    from benchmarks.reach import summarise

    def run(method: str, seed: int, accuracy: float) -> dict[str, Any]:
        return {
            "task": "moons", "backend": "jax", "method": method, "seed": seed, "seconds": 2.0,
            "target_accuracy": accuracy,
        }  # fmt: skip

    runs = [run("source-only", 0, 0.5), run("dann", 0, 0.9), run("source-only", 1, 0.6), run("dann", 1, 0.7)]
    (row,) = summarise([*runs, run("source-only", 2, 0.1)])
    assert (row["seeds"], row["source_only"], row["dann"]) == (2, pytest.approx(0.55), pytest.approx(0.8))
    assert (row["mean_gain"], row["smallest_gain"]) == (pytest.approx(0.25), pytest.approx(0.1))
