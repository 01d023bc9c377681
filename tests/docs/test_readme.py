"""The README keeps its word: every Python block runs, every command exists, every figure it quotes is committed."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.mark.parametrize("code", PYTHON_BLOCKS, ids=lambda code: code.split("\n", 1)[0][:50])
def test_python_block_runs(code: str) -> None:
    for framework in ("torch", "jax"):
        if framework in code and importlib.util.find_spec(framework) is None:
            pytest.skip(f"{framework} is not installed")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_target_exists(command: str) -> None:
    (target,) = shlex.split(command)[1:]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.trains
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("grl train --task")])
def test_train_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer")
    pytest.importorskip(shlex.split(command)[shlex.split(command).index("--backend") + 1])
    from grl.cli import main

    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command)[1:], "--steps", "20"]) == 0
    assert list(tmp_path.rglob("metrics.json"))


def test_it_has_blocks_and_commands() -> None:
    assert len(PYTHON_BLOCKS) >= 3
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)|src=\"([^\"]+)\"", README))
def test_linked_file_is_there(target: tuple[str, str]) -> None:
    path = target[0] or target[1]
    assert (ROOT / path).exists(), path


def test_the_table_of_the_check_is_the_committed_one() -> None:
    counts = json.loads((ROOT / "docs" / "check.json").read_text(encoding="utf-8"))["counts"]
    for form, count in counts.items():
        name = re.escape(form.split(" ", 1)[1])
        row = rf"\|.*{name}.*\| {count['ok']} \| {count['refuses']} \| {count['WRONG']} \| {count['n/a']} \|"
        assert re.search(row, README), form


def results(name: str) -> Any:
    (path,) = re.findall(rf"\]\((benchmarks/results/{name}-\d[\d-]+\.json)\)", README)[:1]
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_the_scores_are_the_measured_ones() -> None:
    names = {"torch": "PyTorch", "jax": "JAX"}
    for row in results("reach")["summary"]:
        figures = " | ".join(f"{row[name]:.3f}" for name in ("source_only", "dann", "mean_gain", "smallest_gain"))
        assert f"| {row['task']} | {names[row['backend']]} | {figures} |" in README


def test_the_table_of_rounding_is_the_measured_one() -> None:
    for row in results("rounding"):
        if row["optimizer"] == "adam" and row["run"] != "JAX, float64":
            figures = (_power_of_ten(row["gaps"][step]) for step in ("3", "10", "20", "50", "100"))
            assert f"| {row['run']} | {' | '.join(figures)} |" in README


def _power_of_ten(number: float) -> str:
    digit, exponent = f"{number:.0e}".split("e")
    return f"{digit}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def test_the_speeds_are_the_measured_ones() -> None:
    for target in results("cpu")["reach"]:
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
    for table in tables(load(ROOT / path)[1]):
        for row in zip(*(column.cells for column in table.columns), strict=True):
            assert " | ".join(map(str, row)).strip() in guide


def test_the_table_of_the_demo_is_the_measured_one() -> None:
    names = {"torch": "PyTorch", "jax": "JAX", "source-only": "source only", "dann": "DANN"}
    for run in json.loads((ROOT / "docs" / "demo.json").read_text(encoding="utf-8"))["runs"]:
        figures = f"{run['target_accuracy']:.3f} | {run['source_accuracy']:.3f} | {run['seconds']:.0f}"
        assert f"| {names[run['method']]} | {names[run['backend']]} | {figures} |" in README
