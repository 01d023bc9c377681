"""Settings of the whole suite: Hypothesis profiles, JAX's strict promotion, and processes that end with their test."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import hypothesis
import pytest

from tests.support.several_processes import ROOT, Start

# HYPOTHESIS_PROFILE is "quick" at the desk (`make quick`), "ci" by default, and "deep" in `make test-deep`, which runs
# at least 100,000 examples in total.
_COMMON = hypothesis.settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain],  # slow, and says little
)
hypothesis.settings.register_profile("quick", _COMMON, max_examples=10)
hypothesis.settings.register_profile("ci", _COMMON, max_examples=60, derandomize=True)
hypothesis.settings.register_profile("deep", _COMMON, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make JAX raise where dtypes are promoted: under its default, a layer that promotes them would pass."""
    if importlib.util.find_spec("jax") is None or request.node.get_closest_marker("trains"):
        yield
        return
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the environment of a run of several processes, which a launcher of the suite may have set."""
    for name in ("WORLD_SIZE", "JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start(nobody_else: None) -> Iterator[Start]:
    """Start the same command once per environment; kill what is still running when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def starting(words: Sequence[Any], environments: Sequence[dict[str, str]]) -> list[subprocess.Popen[str]]:
        for environment in environments:
            surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
            process = subprocess.Popen(
                [sys.executable, *map(str, words)],
                env=surroundings | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            started.append(process)
        return started[-len(environments) :]

    yield starting
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Count the Hypothesis examples that ran."""
    outcome: Any = yield  # pluggy sends the outcome into the generator
    statistics = getattr(item, "hypothesis_statistics", None)
    if call.when == "call" and statistics:
        counts = re.findall(r"(\d+) passing", statistics)
        outcome.get_result().user_properties.append(("hypothesis examples", sum(map(int, counts))))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many examples ran: the deep profile promises 100,000."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    counts = [n for r in reports for name, n in r.user_properties if name == "hypothesis examples"]
    if counts:
        profile = os.environ.get("HYPOTHESIS_PROFILE", "ci")
        terminalreporter.write_line(f"hypothesis profile {profile}: {sum(counts):,} examples in {len(counts)} tests")
