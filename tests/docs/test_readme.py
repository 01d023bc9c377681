"""The README keeps its word: every Python block runs, every command exists, every figure that it cites is committed."""

import importlib.util
import json
import re
import shlex
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from grl.datasets.builtin import TASKS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """Return the lines of the shell blocks, without their comments."""
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


COMMANDS = commands(README)
MAKE = sorted({command for command in COMMANDS + commands(CONTRIBUTING) if command.startswith("make")})
TRAIN = [command for command in COMMANDS if command.startswith("grl train --task")]
LINKS = [a or b for a, b in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)|src=\"([^\"]+)\"", README)]
PATHS = sorted(set(re.findall(r"`((?:tests|benchmarks|grl|docs|examples)/[\w/.-]+)`", README + CONTRIBUTING)))
"""Files and folders that the text names in code style."""


@pytest.mark.parametrize("code", PYTHON_BLOCKS, ids=lambda code: code.split("\n", 1)[0][:50])
def test_python_block_runs(code: str) -> None:
    for framework in ("torch", "jax"):
        if framework in code and importlib.util.find_spec(framework) is None:
            pytest.skip(f"{framework} is not installed")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", MAKE)
def test_make_target_exists(command: str) -> None:
    (target,) = shlex.split(command)[1:]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.trains
@pytest.mark.parametrize("command", TRAIN)
def test_train_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer")
    pytest.importorskip(shlex.split(command)[shlex.split(command).index("--backend") + 1])
    from grl.cli import main

    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command)[1:], "--steps", "20"]) == 0
    assert list(tmp_path.rglob("metrics.json"))


def test_it_has_blocks_commands_links_and_paths() -> None:
    # The tests that are parametrised over these would pass if a pattern found none.
    assert len(PYTHON_BLOCKS) >= 3
    assert {"make demo", "make test", "make check", "make bench", "make quick", "make lint"} <= set(MAKE)
    assert len(TRAIN) >= 2
    assert len(LINKS) >= 20
    assert len(PATHS) >= 5


@pytest.mark.parametrize("path", [*LINKS, *PATHS])
def test_linked_file_exists(path: str) -> None:
    assert (ROOT / path).exists(), path


def test_the_table_of_the_check_is_the_committed_one() -> None:
    counts = json.loads((ROOT / "docs" / "check.json").read_text(encoding="utf-8"))["counts"]
    assert len(counts) >= 8
    for form, count in counts.items():
        name = re.escape(form.split(" ", 1)[1])
        row = rf"\|.*{name}.*\| {count['ok']} \| {count['refuses']} \| {count['WRONG']} \| {count['n/a']} \|"
        assert re.search(row, README), form


def results(name: str) -> Any:
    (path,) = re.findall(rf"\]\((benchmarks/results/{name}-\d[\d-]+\.json)\)", README)[:1]
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_the_scores_are_the_measured_ones() -> None:
    names = {"torch": "PyTorch", "jax": "JAX"}
    rows = results("reach")["summary"]
    assert {(row["task"], row["backend"]) for row in rows} == set(product(TASKS, names))
    for row in rows:
        figures = " | ".join(f"{row[name]:.3f}" for name in ("source_only", "dann", "mean_gain", "smallest_gain"))
        assert f"| {row['task']} | {names[row['backend']]} | {figures} |" in README


def test_the_table_of_rounding_is_the_measured_one() -> None:
    gaps = {(row["optimizer"], row["run"]): row["gaps"] for row in results("rounding")}
    runs = {run for optimizer, run in gaps if optimizer == "adam"}
    assert len(runs) == 7
    assert gaps.keys() == set(product(("sgd", "adam"), runs))
    for run in runs - {"JAX, float64"}:
        figures = (_power_of_ten(gaps["adam", run][step]) for step in ("3", "10", "20", "50", "100"))
        assert f"| {run} | {' | '.join(figures)} |" in README


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_the_text_says_of_rounding_was_measured(optimizer: str) -> None:
    gaps = {row["run"]: row["gaps"] for row in results("rounding") if row["optimizer"] == optimizer}
    # "In float64 the losses of the first hundred steps agree to …"
    assert _power_of_ten(gaps["JAX, float64"]["100"]) in README
    # "Without oneDNN … for ten steps"; with it, ties show from the third step on.
    assert gaps["PyTorch without oneDNN"]["10"] < 2 * 2.0**-23
    assert gaps["PyTorch"]["3"] > 10 * gaps["PyTorch without oneDNN"]["3"]
    # "Noise on the images takes the ties away."
    assert gaps["PyTorch, noise on the images"]["3"] < gaps["PyTorch"]["3"] / 10


def _power_of_ten(number: float) -> str:
    digit, exponent = f"{number:.0e}".split("e")
    return f"{digit}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def test_the_speeds_are_the_measured_ones() -> None:
    targets = results("cpu")["reach"]
    assert len(targets) >= 20
    for target in targets:
        row = re.search(rf"\| {re.escape(target['name'])} \| ([^|]+) \| ([^|]+) \|", README)
        assert row is not None, target["name"]
        assert row[1] == f"{target['value']:.3g}"
        assert row[2].startswith(f"{target['bound']:.3g}")
        assert ("missed" in row[2]) == (target["value"] > target["bound"])


def test_the_tables_of_scaling_are_the_measured_ones() -> None:
    pytest.importorskip("rich")
    from benchmarks.record import load
    from benchmarks.scale_out import tables

    guide = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
    (path,) = re.findall(r"benchmarks/results/scale-out-[\w-]+\.json", guide)
    measured = tables(load(ROOT / path)[1])
    assert measured
    for table in measured:
        assert table.row_count
        for row in zip(*(column.cells for column in table.columns), strict=True):
            assert " | ".join(map(str, row)).strip() in guide


def test_the_table_of_the_demo_is_the_measured_one() -> None:
    names = {"torch": "PyTorch", "jax": "JAX", "source-only": "source only", "dann": "DANN"}
    runs = json.loads((ROOT / "docs" / "demo.json").read_text(encoding="utf-8"))["runs"]
    assert {(run["method"], run["backend"]) for run in runs} == set(product(("source-only", "dann"), ("torch", "jax")))
    for run in runs:
        figures = f"{run['target_accuracy']:.3f} | {run['source_accuracy']:.3f} | {run['seconds']:.0f}"
        assert f"| {names[run['method']]} | {names[run['backend']]} | {figures} |" in README
