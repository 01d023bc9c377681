"""What `grl train` does when it is told to end: SIGTERM, Ctrl-C, and Ctrl-C once more."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from grl.experiment import load_checkpoint
from tests.support.installed import INSTALLED, any_backend

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "grl: interrupted; no file was left half written.\n"


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Python with these words; killed in the end."""
    # A shell starts background jobs with SIGINT ignored, and children inherit that; a handler they do not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        child = subprocess.Popen([sys.executable, *words], env=environment, text=True, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)
    with child:
        try:
            yield child
        finally:
            child.kill()


def wait_for(child: subprocess.Popen[str], pattern: str) -> str:
    assert child.stdout is not None
    for line in child.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"no line has {pattern!r}: {child.communicate()[1]}")


@any_backend
def test_sigterm_saves_and_ends_with_143_and_a_resumed_run_ends_at_the_second_ctrl_c(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        "-m",
        "grl",
        "train",
        "--task",
        "moons",
        "--backend",
        INSTALLED[0],
        "--steps",
        "1000000",
        "--log-every",
        "1",
    ]
    with process(*words, "--out", str(out)) as child:
        wait_for(child, "step 10/1000000")
        child.terminate()
        _, error = child.communicate(timeout=60)
    step = load_checkpoint(out).done.step
    assert child.returncode == 143
    assert error == f"grl: stopped at step {step} of 1000000, with a checkpoint: grl train --resume {out}\n"
    assert step >= 10
    records = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == list(range(1, step + 1))

    with process("-m", "grl", "train", "--resume", str(out), "--out", str(tmp_path / "again")) as child:
        assert wait_for(child, "Going on") == f"Going on from {out}, at step {step} of 1000000.\n"
        wait_for(child, f"step {step + 10}/1000000  .*  checkpoint at step {step}")
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    assert child.returncode in (130, -signal.SIGINT)
    assert error in ("", SENTENCE)
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"metrics.jsonl"}
    assert all(json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines())


def test_an_unfinished_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from grl.cli import main
    from grl.experiment.checkpoint import Checkpoint, Done, save_checkpoint
    from grl.experiment.config import Config

    save_checkpoint(tmp_path, Checkpoint(Config(steps=9), Done(2), {}, {}, {}, ()), "")
    assert main(["train", "--task", "moons", "--out", str(tmp_path)]) == 2
    expected = f"grl: --out: {tmp_path} holds the checkpoint of a run that is not finished, at step 2; expected"
    assert capsys.readouterr().err == f"{expected} --resume {tmp_path}, or another directory.\n"


# A command whose end takes long, first in Python and then in C, where no exception can reach it.
STUBBORN = """
import hashlib, sys, time
import grl.cli

def run(arguments):
    try:
        print("busy", flush=True)
        {first}
    finally:
        print("ending", flush=True)
        {then}

grl.cli._run = run
sys.exit(grl.cli.main([]))
"""
IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


@pytest.mark.parametrize(("first", "then", "waits"), [
    ("time.sleep(60)", "time.sleep(60)", "ending"),
    ("time.sleep(60)", IN_C, "ending"),
    (IN_C, "pass", None),
], ids=["cleaning up", "cleaning up, in C", "compiling"])  # fmt: skip
def test_the_second_ctrl_c_ends_at_once_whatever_goes_on(first: str, then: str, waits: str | None) -> None:
    with process("-c", STUBBORN.format(first=first, then=then)) as child:
        wait_for(child, "busy")
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        if waits:
            wait_for(child, waits)
        time.sleep(0.1)
        assert child.poll() is None, "one is not enough"
        started = time.perf_counter()
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=30)
    assert child.returncode == 130
    assert time.perf_counter() - started < 10
    assert error in ("", SENTENCE)


def test_ctrl_c_while_python_ends_leaves_no_traceback() -> None:
    code = "import atexit, sys, time; import grl.cli\ndef run(arguments): print('busy', flush=True); time.sleep(60)\n"
    code += "grl.cli._run = run; atexit.register(lambda: (print('ending', flush=True), time.sleep(60)))\n"
    code += "sys.exit(grl.cli.main([]))"
    with process("-c", code) as child:
        wait_for(child, "busy")
        child.send_signal(signal.SIGINT)
        wait_for(child, "ending")
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=30)
    assert child.returncode in (130, -signal.SIGINT)
    assert error == SENTENCE
