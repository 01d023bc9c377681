"""A run that goes on from its checkpoint ends as if nothing had been, whatever has stopped it and wherever."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from grl.experiment import CheckpointError, StoppedError, load_checkpoint, load_weights, train
from grl.experiment.checkpoint import Checkpoint, Done, content_digest, save_checkpoint, unfinished
from grl.experiment.config import Config, ConfigError
from grl.experiment.files import FAULT_FILES
from grl.experiment.loop import chunk
from tests.support.installed import DEEP, INSTALLED, any_backend, both_backends, each_backend

pytestmark = pytest.mark.trains

ROOT = Path(__file__).resolve().parents[2]


def config_of(backend: str, **settings: Any) -> Config:
    small = {"steps": 40, "log_every": 4, "checkpoint_every": 20, "hidden": (8,), "domain_hidden": (8,)}
    return Config.recommended("moons", backend=backend, **{**small, **settings})


def stopped_at(config: Config, step: int, out: Path) -> Checkpoint:
    """Run until a chunk ends at or behind a step; return the checkpoint."""
    out.mkdir(exist_ok=True)
    seen: list[int] = []
    with pytest.raises(
        StoppedError, match=f"stopped at step .* of {config.steps}, with a checkpoint: grl train --resume"
    ):
        train(
            config, out=out, progress=lambda update: seen.append(update.step), stop=lambda: _next(seen, config) >= step
        )
    return load_checkpoint(out)


def _next(seen: list[int], config: Config) -> int:
    """Where the chunk ends that is asked about before it is told of."""
    return chunk(seen[-1] if seen else 0, config).stop


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


# What goes on ends the same.


@each_backend
@pytest.mark.parametrize("settings", [
    {},
    {"optimizer": "sgd", "learning_rate": 1e-2, "clip_norm": 0.5, "checkpoint_every": None, "method": "source-only"},
], ids=["adam", "sgd"])  # fmt: skip
def test_a_run_that_was_stopped_goes_on_bit_for_bit(backend: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(backend, **settings)
    (tmp_path / "whole").mkdir()
    whole = train(config, out=tmp_path / "whole")
    checkpoint = stopped_at(config, 30, tmp_path / "stopped")
    assert checkpoint.config == config
    long = replace(checkpoint, done=replace(checkpoint.done, seconds=1000.0))
    again = train(config, out=tmp_path / "stopped", resume=long)
    assert_same_bits(again.weights, whole.weights)
    assert again.metrics["history"] == whole.metrics["history"]
    assert again.metrics["seconds"] >= 1000, "what all its steps have taken"
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "stopped")]
    assert texts[0] == texts[1]


@both_backends
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_other_backend_goes_on_as_the_first_would_have(optimizer: str, tmp_path: Path) -> None:
    """The state of the optimiser goes along: without it, Adam's first steps would be of another size."""
    torch = config_of("torch", optimizer=optimizer, dtype="float64", learning_rate=1e-2, checkpoint_every=None)
    jax = replace(torch, backend="jax")
    whole = train(torch).weights
    for here, there in ((torch, jax), (jax, torch)):
        checkpoint = stopped_at(here, 20, tmp_path / here.backend)
        weights = train(there, out=tmp_path / here.backend, resume=checkpoint).weights
        for name, array in whole.items():
            np.testing.assert_allclose(weights[name], array, rtol=1e-9, atol=1e-12, err_msg=name)
    without = {name: a if name.startswith("model/") else np.zeros_like(a) for name, a in checkpoint.state.items()}
    weights = train(torch, out=tmp_path / "jax", resume=replace(checkpoint, state=without)).weights
    assert max(np.abs(weights[name] - array).max() for name, array in whole.items()) > 1e-4, "this test can fail"


def test_where_steps_are_run_together_depends_on_their_numbers_alone() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        every = int(generator.integers(1, 40))
        config = Config(steps=int(generator.integers(1, 200)), checkpoint_every=every)
        ends = list(_ends(config, 0))
        for start in [0, *ends][:-1]:
            assert list(_ends(config, start)) == [end for end in ends if end > start]
        assert {*range(every, config.steps, every), config.steps} <= {*ends}
        assert len({chunk(start, config).stop - start for start in [0, *ends[:-2]]}) <= 2


def _ends(config: Config, step: int) -> Any:
    while step < config.steps:
        step = chunk(step, config).stop
        yield step


# Killed.

CHILD = """
import json, sys
from pathlib import Path
from grl.experiment.config import Config
from grl.experiment import load_checkpoint, train
out, config = Path(sys.argv[1]), Config.from_json(json.loads(sys.argv[2]))
checkpoint = load_checkpoint(out) if (out / "checkpoint.json").exists() else None
train(config, out=out, resume=checkpoint)
(out / "finished").touch()
"""


def start(config: Config, out: Path) -> subprocess.Popen[bytes]:
    """Start a process that runs from the checkpoint, if there is one, to the end."""
    command = [sys.executable, "-c", CHILD, str(out), json.dumps(asdict(config))]
    threads = {"OMP_NUM_THREADS": "1"}  # two of them wait for each other for longer than they work, on a busy machine
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | threads, stderr=subprocess.PIPE)


def finish(config: Config, out: Path) -> Checkpoint:
    _, error = start(config, out).communicate(timeout=200)
    assert (out / "finished").exists(), error.decode()
    return load_checkpoint(out)


def kill_at(config: Config, out: Path, step: int, later: float) -> bool:
    """Start; SIGKILL so many seconds after the step was logged. Return whether a checkpoint was being written."""
    log = out / "metrics.jsonl"
    with start(config, out) as process:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= step):
            time.sleep(0.001)
        time.sleep(later)
        process.kill()
        _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error.decode()
    return len({*out.glob("checkpoint-*"), *out.glob(".checkpoint*")}) > 1


@pytest.mark.timeout(3600 if DEEP else 300)
@each_backend
def test_a_run_killed_again_and_again_ends_with_the_same_bits(backend: str, tmp_path: Path) -> None:
    """At random steps, while a checkpoint is written after every one: so most kills fall into the write of one."""
    kills, chance = (24 if DEEP else 2), random.Random(f"2016 {backend}")
    config = config_of(backend, steps=20 * (kills + 1), log_every=1, checkpoint_every=1)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = finish(config, tmp_path / "whole")
    steps = sorted(chance.sample(range(2, config.steps - 10), kills))
    writes = [kill_at(config, tmp_path / "killed", step, chance.uniform(0, 0.01)) for step in steps]
    again = finish(config, tmp_path / "killed")
    assert_same_bits(again.state, whole.state)
    assert again.history == whole.history
    assert not [*(tmp_path / "killed").glob(".*")], "what was half written is gone"
    assert len([*(tmp_path / "killed").glob("checkpoint-*")]) == 1
    print(f"{backend}: killed at the steps {steps}, {sum(writes)} of {kills} times in the write of a checkpoint")
    assert sum(writes) >= kills // 4


WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from grl.experiment.config import Config
from grl.experiment.log import Log
from grl.experiment.checkpoint import Checkpoint, Done, save_checkpoint

out, last = sys.argv[1], int(sys.argv[2])
calls = 0

def mortal(function, half=None):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == last:
            if half is not None:
                half(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

def write(step):
    state = {"model/w": np.full(1000, step, np.float32)}
    save_checkpoint(out, Checkpoint(Config(steps=9), Done(step), {}, {}, state, ()), log.digest)

with Log(out) as log:
    write(1)
    os.fsync, os.replace = mortal(os.fsync), mortal(os.replace)
    for name in ("write_bytes", "write_text"):
        written = getattr(Path, name)
        half = lambda path, data, written=written: written(path, data[: len(data) // 2])
        setattr(Path, name, mortal(written, half))
    Path.unlink = mortal(Path.unlink)
    write(2)
"""


def test_killed_at_any_point_of_the_write_of_a_checkpoint_there_is_a_whole_one(tmp_path: Path) -> None:
    seen = []
    for last in count(1):
        out = tmp_path / str(last)
        out.mkdir()
        done = subprocess.run([sys.executable, "-c", WRITER, str(out), str(last)], cwd=ROOT, capture_output=True)
        checkpoint = load_checkpoint(out)
        seen.append(checkpoint.done.step)
        assert (checkpoint.state["model/w"] == checkpoint.done.step).all()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert seen == sorted(seen)
    assert seen.count(1) == 8, "at write, fsync, rename, fsync and clearing up of the one file; then of the other"
    assert seen.count(2) == 4, "up to its rename: after it, and as the file before goes"


@any_backend
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the names of open files")
def test_what_a_file_speaks_of_is_on_the_disk_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kill can show this, only a power cut: so what is asked of the system is looked at."""
    asked: list[tuple[str, ...]] = []

    def name_of(path: Any) -> str:
        return "the folder" if Path(path) == tmp_path else Path(path).name.replace(f".{os.getpid()}.", ".PID.")

    def watch(name: str, names: Callable[..., tuple[str, ...]]) -> None:
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given: asked.append((name, *names(*given))) or function(*given))

    watch("fsync", lambda descriptor: (name_of(os.readlink(f"/proc/self/fd/{descriptor}")),))
    watch("replace", lambda one, other: (name_of(one), name_of(other)))
    train(config_of(INSTALLED[0], steps=20), out=tmp_path)

    def replacing(temporary: str, name: str) -> list[tuple[str, ...]]:
        return [("fsync", temporary), ("replace", temporary, name), ("fsync", "the folder")]

    assert asked == [
        *replacing(".metrics.PID.jsonl", "metrics.jsonl"),
        ("fsync", "metrics.jsonl"),
        *replacing(".checkpoint-20.PID.safetensors", "checkpoint-20.safetensors"),
        *replacing(".checkpoint.PID.json", "checkpoint.json"),
    ]


@any_backend
def test_what_an_earlier_run_has_left_goes_but_the_run_that_goes_on_keeps_its_own(tmp_path: Path) -> None:
    config, events = config_of(INSTALLED[0], steps=20), "events.out.tfevents.1.host"
    mine, other = tmp_path / "mine", tmp_path / "other"

    def left(out: Path, resume: Checkpoint | None, **settings: Any) -> set[str]:
        out.mkdir(exist_ok=True)
        for name in (*FAULT_FILES, events, "notes"):
            (out / name).touch()
        train(replace(config, **settings), out=out, resume=resume)
        return {path.name for path in out.iterdir()}

    written = {"metrics.jsonl", "checkpoint.json", "checkpoint-20.safetensors", "notes"}
    for out in (mine, other):
        assert left(out, None) == written
        assert unfinished(out) is None, "it has come to its end"
    checkpoint = load_checkpoint(mine)
    assert left(tmp_path / "other" / ".." / "mine", checkpoint) == {*written, events}
    assert left(other, checkpoint) == {"metrics.jsonl", "notes"}, "no step was left, and so no checkpoint due"
    assert left(mine, None, checkpoint_every=None) == {"metrics.jsonl", "notes"}


def test_checkpoints_without_a_directory_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint_every: got 20 without `out`; expected both, or neither\.$"):
        train(config_of("torch"))


# Disks and strangers.


@any_backend
def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    config, limits = config_of(INSTALLED[0]), resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(update: Any) -> None:  # a limit of the size of files: the same error as a full disk, but for its number
        if update.checkpoint == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))

    try:
        with pytest.raises(
            CheckpointError, match="the checkpoint of step 40 cannot be written: File too large; that of"
        ):
            train(config, out=tmp_path, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(tmp_path).done.step == 20
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.jsonl",
        "checkpoint.json",
        "checkpoint-20.safetensors",
    }
    whole = train(replace(config, checkpoint_every=None))
    again = train(config, out=tmp_path, resume=load_checkpoint(tmp_path))
    assert again.metrics["history"] == whole.metrics["history"]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A directory with a checkpoint at step 2 of 9, without a framework."""
    from grl.experiment.log import Log

    with Log(tmp_path) as log:
        log.append([{"step": step, "label_loss": 0.5, "domain_loss": None, "coeff": 0.0} for step in (1, 2)])
        state = {"model/w": np.arange(100, dtype=np.float32)}
        checkpoint = Checkpoint(Config(steps=9), Done(2), {"source": 5}, {}, state, tuple(log.records))
        save_checkpoint(tmp_path, checkpoint, log.digest)
    return tmp_path


def test_what_is_written_is_read(written: Path) -> None:
    checkpoint = load_checkpoint(written)
    assert (checkpoint.config, checkpoint.done) == (Config(steps=9), Done(2))
    assert [record["step"] for record in checkpoint.history] == [1, 2]
    np.testing.assert_array_equal(checkpoint.state["model/w"], np.arange(100))


@pytest.mark.parametrize("name", ["checkpoint-2.safetensors", "checkpoint.json", "metrics.jsonl"])
def test_a_file_that_is_truncated_changed_or_missing_is_named(name: str, written: Path) -> None:
    path = written / name
    content, chance = path.read_bytes(), random.Random(2016)
    for trial in range(100):
        place = chance.randrange(len(content.rstrip()))
        if trial % 2:
            path.write_bytes(content[:place])
        else:
            changed = bytes([content[place] ^ 1 << chance.randrange(8)])
            path.write_bytes(content[:place] + changed + content[place + 1 :])
        with pytest.raises(CheckpointError) as refusal:
            load_checkpoint(written)
        assert str(refusal.value).startswith(f"{path}: ")
        assert "\n" not in str(refusal.value)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read: No such file or directory"):
        load_checkpoint(written)


@pytest.mark.parametrize(("change", "message"), [
    ({"format": 2}, "has the format 2; expected 1"),
    ({"step": 10}, "is at step 10 of 9"),
    ({"step": -1}, "no checkpoint of a run"),
    ({"step": True}, "no checkpoint of a run"),
    ({"seconds": "1"}, "no checkpoint of a run"),
    ({"config": {}}, "no checkpoint of a run of this version: config: missing or unknown settings"),
    ({"config": {**asdict(Config()), "hidden": 5}}, "hidden: got 5"),
    ({"config": {**asdict(Config()), "data": 5}}, "data: got 5"),
    ({"history": []}, "no checkpoint of a run"),
    ({"data": 1}, "no checkpoint of a run"),
])  # fmt: skip
def test_a_stranger_who_knows_the_format_is_refused_too(change: dict[str, Any], message: str, written: Path) -> None:
    content = json.loads((written / "checkpoint.json").read_text()) | change
    del content["sha256"]
    (written / "checkpoint.json").write_text(json.dumps({**content, "sha256": content_digest(content)}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(written)


@any_backend
def test_a_checkpoint_of_another_network_or_of_other_data_is_refused(tmp_path: Path) -> None:
    config = config_of(INSTALLED[0])
    checkpoint = stopped_at(config, 10, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for other, message in (
        (
            replace(config, hidden=(9,)),
            r"'model/backbone.layers.0.weight' is of shape \(8, 2\); expected \(9, 2\)",
        ),
        (  # of a size that would take all memory, if it were made before it is looked at
            replace(config, hidden=(10**12,)),
            r"'model/backbone.layers.0.weight' is of shape \(8, 2\); expected \(1000000000000, 2\)",
        ),
        (replace(config, hidden=(8, 8)), r"'model/backbone.layers.1.weight' is missing"),
        (replace(config, optimizer="sgd"), "'exp_avg/.*' has no place in this network"),
        (replace(config, seed=1), "the data are not those that it was trained on: first_batch_sha256"),
    ):
        with pytest.raises(CheckpointError, match=f"checkpoint of step 10: .*{message}"):
            train(other, out=tmp_path, resume=checkpoint)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_there_is_no_pickle_in_a_checkpoint(written: Path) -> None:
    """Every byte of it is text, or numbers that safetensors reads without executing anything."""
    json.loads((written / "checkpoint.json").read_text())
    [json.loads(line) for line in (written / "metrics.jsonl").read_text().splitlines()]
    assert load_weights(written / "checkpoint-2.safetensors").keys() == {"model/w"}
    assert len([*written.iterdir()]) == 3
