"""Every example runs as it is, and has its twin in the other framework."""

import importlib.util
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in (EXAMPLES / "torch").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_example_runs(framework: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    runpy.run_path(str(EXAMPLES / framework / name), run_name="__main__")
    assert capsys.readouterr().out, "an example prints what it shows"


def test_every_example_has_its_twin() -> None:
    assert sorted(path.name for path in (EXAMPLES / "jax").glob("*.py")) == NAMES
    assert len(NAMES) == 9, "what the README lists"
