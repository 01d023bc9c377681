"""What several processes do when one dies, is told to end or meets a NaN; and how the run goes on from there."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from grl.experiment import batches, load_checkpoint, load_data, load_weights, train
from grl.experiment.config import Config
from grl.experiment.files import FAULT_FILES
from tests.support.installed import INSTALLED, deep, each_backend, needs_flax, needs_torch
from tests.support.several_processes import Start, end, environments_of

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("nobody_else")]

STEPS = {("torch", "fsdp"): 60}  # whose steps take ten times as long
# Each kind of run: how parameters are kept, by whom. JAX's two ways are one program with other shardings.
each_kind = pytest.mark.parametrize(("backend", "sharding"), [
    pytest.param("torch", "replicated", marks=[needs_torch, deep]),
    pytest.param("torch", "fsdp", marks=needs_torch),
    pytest.param("jax", "replicated", marks=[needs_flax, deep]),
    pytest.param("jax", "fsdp", marks=[needs_flax, deep]),
])  # fmt: skip


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    while text not in (line := process.stdout.readline()):
        assert line, f"it has ended before {text!r}: {process.communicate()[1]}"


# Told to end.


@each_kind
def test_sigterm_to_one_saves_for_all_and_the_run_goes_on_bit_for_bit(
    backend: str, sharding: str, tmp_path: Path, start: Start
) -> None:
    words: list[Any] = ["-m", "grl", "train", "--backend", backend, "--sharding", sharding, "--task", "moons"]
    steps = STEPS.get((backend, sharding), 200)
    words += ["--dtype", "float64", "--log-every", 1, "--steps", steps]
    whole = start([*words, "--out", tmp_path / "whole"], environments_of(backend, 2))
    stopped = start([*words, "--out", tmp_path / "stopped"], environments_of(backend, 2))
    wait_for(stopped[0], "step 10/")
    stopped[1].send_signal(signal.SIGTERM)
    first, second = end(stopped)
    assert (first.status, second.status) == (143, 143), first.err + second.err
    checkpoint = load_checkpoint(tmp_path / "stopped")
    step = checkpoint.done.step
    assert 10 <= step < steps
    sentence = f"grl: stopped at step {step} of {steps}, with a checkpoint: grl train --resume {tmp_path / 'stopped'}\n"
    assert sentence in first.err
    assert second.err == "".join(line for line in second.out.splitlines() if not line.startswith("[Gloo]")) == ""

    again = ["-m", "grl", "train", "--resume", tmp_path / "stopped"]
    resumed = start(again, environments_of(backend, 2))
    for ended in end([*resumed, *whole]):
        assert ended.status == 0, ended.err
    weights = {name: load_weights(tmp_path / name / "model.safetensors") for name in ("stopped", "whole")}
    for name, array in weights["whole"].items():
        assert array.tobytes() == weights["stopped"][name].tobytes(), name
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("stopped", "whole")]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) == steps

    # It is the checkpoint of a process alone, which goes on as the several have; so does the other framework's.
    for config in (replace(checkpoint.config, backend=name, sharding="replicated") for name in INSTALLED):
        alone = train(config, resume=checkpoint)
        for name, array in weights["whole"].items():
            np.testing.assert_allclose(alone.weights[name], array, rtol=1e-8, atol=1e-11, err_msg=name)


# A loss that is not finite.


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images; one of the target's is so large that its convolution overflows."""
    generator = np.random.default_rng(0)
    source, target = (generator.normal(size=(60, 1, 8, 8)).astype(np.float32) for _ in range(2))
    target[17] = 3e38
    path = tmp_path_factory.mktemp("data") / "poisoned.npz"
    np.savez(path, x_source=source, y_source=np.arange(60) % 2, x_target=target)
    return path


def poisoned_steps(config: Config) -> dict[int, Any]:
    """By their number, counted from 1: the steps whose batch has the poison, and that batch."""
    stream = islice(batches(load_data(config), config), config.steps)
    return {step: batch for step, batch in enumerate(stream, 1) if batch[2].max() > 1e38}


@pytest.mark.parametrize(("backend", "sharding"), [
    pytest.param("torch", "replicated", marks=[needs_torch, deep]),
    pytest.param("torch", "fsdp", marks=needs_torch),
    pytest.param("jax", "fsdp", marks=[needs_flax, deep]),
])  # fmt: skip
def test_a_nan_in_the_part_of_one_ends_all_and_the_step_is_kept_whole(
    backend: str, sharding: str, poisoned: Path, tmp_path: Path, start: Start
) -> None:
    words = ["-m", "grl", "train", "--backend", backend, "--sharding", sharding, "--data", poisoned]
    words += ["--batch-size", 4, "--steps", 24, "--out", tmp_path / "run"]
    first, second = end(start(words, environments_of(backend, 2)))
    assert (first.status, second.status) == (3, 3), first.err + second.err
    assert second.err == "".join(line for line in second.out.splitlines() if not line.startswith("[Gloo]")) == ""
    config = Config.recommended("data", backend=backend, data=str(poisoned), batch_size=4, steps=24)
    step, expected = next(iter(poisoned_steps(config).items()))
    assert f"grl: step {step}: the domain loss is nan; its batch, gradients and weights are in" in first.err
    with np.load(tmp_path / "run" / "nan-batch.npz") as batch:
        for name, array in zip(("x", "y", "x_target"), expected, strict=True):
            np.testing.assert_array_equal(batch[name], array)
    report = json.loads((tmp_path / "run" / "nan-report.json").read_text())
    assert (report["step"], report["domain_loss"], report["reversal"]["verdict"]) == (step, "nan", "not finite")
    weights = load_weights(tmp_path / "run" / "nan-weights.safetensors")
    assert all(np.isfinite(array).all() for array in weights.values())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.jsonl", *FAULT_FILES}


@needs_torch
def test_a_step_with_a_nan_in_the_part_of_one_is_skipped_by_all(poisoned: Path, tmp_path: Path, start: Start) -> None:
    words = ["-m", "grl", "train", "--backend", "torch", "--data", poisoned, "--on-nan", "skip"]
    words += ["--batch-size", 4, "--steps", 24, "--out", tmp_path / "run"]
    for ended in end(start(words, environments_of("torch", 2))):
        assert ended.status == 0, ended.err
    config = Config.recommended("data", backend="torch", data=str(poisoned), batch_size=4, steps=24)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["skipped_steps"] == len(poisoned_steps(config)) > 0
    weights = load_weights(tmp_path / "run" / "model.safetensors")
    assert all(np.isfinite(array).all() for array in weights.values())


# A process that dies.


@pytest.mark.parametrize("sent", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=deep)])
@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=deep)])
@each_backend
def test_when_one_is_lost_in_mid_step_the_other_ends_with_a_message_and_the_checkpoint_is_usable(
    backend: str, killed: int, sent: signal.Signals, tmp_path: Path, start: Start
) -> None:
    words = ["-m", "grl", "train", "--backend", backend, "--task", "moons", "--steps", 10**6, "--timeout", 20]
    processes = start([*words, "--checkpoint-every", 10, "--out", tmp_path / "run"], environments_of(backend, 2))
    wait_for(processes[0], "checkpoint at step 10")
    processes[killed].send_signal(sent)
    died = time.monotonic()
    (ended,) = end([processes[1 - killed]])
    assert time.monotonic() - died < 20 + 40, "the timeout, and what a busy machine takes"
    # JAX ends a process itself, by SIGABRT and in words of its own, once its coordinator misses another or is gone.
    by_jax = backend == "jax" and (killed == 0 or sent == signal.SIGSTOP)
    assert ended.status in ((1, -signal.SIGABRT) if by_jax else (1,)), ended.err
    assert "another process ended" in ended.err or "another task died" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run" / "model.safetensors").exists()
    checkpoint = load_checkpoint(tmp_path / "run")
    step = checkpoint.done.step
    assert step >= 10
    assert step % 10 == 0
    history = train(replace(checkpoint.config, steps=step + 10), resume=checkpoint, out=tmp_path / "run").metrics[
        "history"
    ]
    assert history[-1]["step"] == step + 10
