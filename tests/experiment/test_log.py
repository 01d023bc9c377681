"""metrics.jsonl and event files: whole lines, at once, whatever happens afterwards."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grl.experiment.config import ConfigError
from grl.experiment.log import Log

ROOT = Path(__file__).resolve().parents[2]


def record(step: int, domain_loss: float | None = 0.5) -> dict[str, Any]:
    return {"step": step, "label_loss": 1 / step, "domain_loss": domain_loss, "coeff": 0.25}


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_record_is_a_line_that_others_see_at_once(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        for step in (1, 2, 3):
            log.append([record(step)])
            assert steps(tmp_path) == list(range(1, step + 1))
        assert log.records == [record(1), record(2), record(3)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == log.records


def test_lines_outlive_a_process_that_is_killed(tmp_path: Path) -> None:
    code = "import os, signal, sys; from grl.experiment.log import Log; log = Log(sys.argv[1])\n"
    code += f"log.append([{record(1)!r}]); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert steps(tmp_path) == [1]


def test_a_run_that_goes_on_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.append([record(step) for step in (1, 2, 3)])
    with Log(tmp_path, log.records[:2]) as again:
        assert steps(tmp_path) == [1, 2]
        again.append([record(4)])
    assert steps(tmp_path) == [1, 2, 4]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Log(tmp_path) as log:
        log.append([record(1)])
        size = os.path.getsize(tmp_path / "metrics.jsonl")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
            with pytest.raises(ConfigError, match=r"metrics.jsonl: cannot be written: File too large\."):
                log.append([record(2)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert steps(tmp_path) == [1]


def test_event_files_say_what_metrics_jsonl_says(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Log(tmp_path, tensorboard=True) as log:
        log.append([record(1), record(2, domain_loss=None), record(3)])
        assert len(_scalars(EventAccumulator(str(tmp_path)), "loss/label")) == 3, "before the file is closed"
    # One that was killed after step 3, with a checkpoint of step 2: what it logged since is dropped.
    with Log(tmp_path, log.records[:2], tensorboard=True) as again:
        again.append([record(3, domain_loss=0.75), record(4)])
    events = EventAccumulator(str(tmp_path))
    assert _scalars(events, "loss/domain") == [(1, 0.5), (3, 0.75), (4, 0.5)]
    assert _scalars(events, "coefficient") == [(step, 0.25) for step in (1, 2, 3, 4)]
    assert _scalars(events, "loss/label") == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]


def _scalars(events: Any, tag: str) -> list[tuple[int, float]]:
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith(("tensorboard.", "grl.experiment.events"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'event files need tensorboard.*: pip install "grl\[tensorboard\]"'):
        Log(tmp_path, tensorboard=True)


def test_event_files_need_no_framework(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    code = "import sys; from pathlib import Path; from grl.experiment.events import EventFile; "
    code += "EventFile(Path(sys.argv[1])).close(); "
    code += "sys.exit(', '.join({'torch', 'jax', 'tensorflow'} & {*sys.modules}) or 0)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
