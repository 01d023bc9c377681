"""Ten thousand damaged inputs: no traceback, no hang, no great allocation, nothing half written under a final name.

Every case is drawn from its number, so that one that fails can be drawn again: `damaged(kind, number, folder)`. With
GRL_DEEP=1 there are ten times as many.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("PIL")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from numpy.random import Generator

from grl.cli import main
from grl.datasets import DataError, load_path
from grl.experiment import CheckpointError, StoppedError, Update, load_checkpoint, train
from grl.experiment.architecture import Architecture, initial_weights
from grl.experiment.config import Config, ConfigError
from grl.experiment.files import FAULT_FILES
from grl.weights_file import WeightsFileError, check_weights, load_weights, save_weights
from tests.support.damage import mutate, mutate_checkpoint, mutate_npz, mutate_png, mutate_safetensors, mutate_text
from tests.support.data_layouts import (
    arrays,
    write_images,
    write_npy,
    write_npz,
    write_packed_npz,
    write_packed_shards,
    write_shards,
)
from tests.support.installed import DEEP, INSTALLED

pytestmark = pytest.mark.trains

TIMES = 10 if DEEP else 1
SECONDS = 60  # a case takes milliseconds, but the first ones import a framework on a machine that may be busy


@dataclass(frozen=True)
class Kind:
    """A kind of file that is read.

    Args:
        cases: how many are damaged in the default run.
        write: writes a good one, or a folder of good ones, and returns its path; there are two, of other numbers.
        files: the ones of them that are damaged, as a pattern in the folder; none: what `write` returns.
        mutate: damages bytes.
        read: reads what `write` has returned, as a command does.
        options: how `grl train` is given what `write` has returned, which comes last.
        seal: makes the checksums of a folder right again, as a stranger would who knows the format.
    """

    cases: int
    write: Callable[[Path, int], Path]
    files: str | None
    mutate: Callable[[bytes, bytes, Generator], bytes]
    read: Callable[[Path], Any]
    options: tuple[str, ...] = ("--backend", "torch", "--steps", "1", "--data")
    seal: Callable[[Path], None] = lambda folder: None


def of_layout(layout: Callable[..., Path], **how: Any) -> Callable[[Path, int], Path]:
    def write(path: Path, number: int) -> Path:
        return layout(path, arrays(side=4, samples=4 + 2 * number, classes=2), **how)

    return write


def write_weights(path: Path, number: int) -> Path:
    save_weights(path.with_suffix(".safetensors"), initial_weights(Architecture((2,), 2, hidden=(3,)), number))
    return path.with_suffix(".safetensors")


def read_data(path: Path) -> None:
    """As `grl train` does, with the data in files and in memory; what can be left out is left out once."""
    try:
        task = load_path(path, memory=0)
    except DataError as error:
        if path.is_dir():
            with one_sentence_is_fine():
                load_path(path, memory=1, on_bad_data="skip")
        raise error
    for x in (task.x_source, task.x_target, task.x_test):
        assert x is None or np.isfinite(x[:]).all()


def write_checkpoint(path: Path, number: int) -> Path:
    """A run that was stopped at step 2 of 4."""
    path.mkdir()
    config = Config.recommended(
        "moons", backend="torch", steps=4, checkpoint_every=2, hidden=(3,), domain_hidden=(3,), log_every=1, seed=number
    )
    with suppress(StoppedError):
        train(config, out=path, stop=lambda: True)
    return path


def read_checkpoint(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert Config.from_json(asdict(checkpoint.config)) == checkpoint.config
    assert 0 <= checkpoint.done.step <= checkpoint.config.steps
    assert all(isinstance(array, np.ndarray) for array in checkpoint.state.values())


def seal_checkpoint(folder: Path) -> None:
    with suppress(ValueError, RecursionError, OSError):  # what is no JSON any more has no checksum either
        content = json.loads((folder / "checkpoint.json").read_bytes())
        if isinstance(content, dict) and isinstance(content.get("history"), dict):
            content["tensors_sha256"] = sha256((folder / "checkpoint-2.safetensors").read_bytes()).hexdigest()
            content["history"]["sha256"] = sha256((folder / "metrics.jsonl").read_bytes()).hexdigest()
            content.pop("sha256", None)
            content["sha256"] = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            (folder / "checkpoint.json").unlink()  # and not in place: the file may be a link to the good one
            (folder / "checkpoint.json").write_text(json.dumps(content))


def read_weights(path: Path) -> None:
    check_weights(str(path), load_weights(path), initial_weights(Architecture((2,), 2, hidden=(3,)), 0))


_INIT = ("--backend", "torch", "--steps", "1", "--task", "moons", "--init")
_RESUME = ("--resume",)
KINDS = {
    "npz": Kind(2000, of_layout(write_npz), None, mutate_npz, read_data),
    "compressed npz": Kind(1000, of_layout(write_packed_npz), None, mutate_npz, read_data),
    "npy": Kind(1500, of_layout(write_npy), "*.npy", mutate, read_data),
    "shards": Kind(1000, of_layout(write_shards, shards=2), "*.npz", mutate_npz, read_data),
    "compressed shards": Kind(700, of_layout(write_packed_shards, shards=2), "*.npz", mutate_npz, read_data),
    "images": Kind(800, of_layout(write_images), "*/**/*.png", mutate_png, read_data),
    "safetensors": Kind(2000, write_weights, None, mutate_safetensors, read_weights, _INIT),
}
if "torch" in INSTALLED:
    KINDS["checkpoint"] = Kind(700, write_checkpoint, "*.*", mutate, read_checkpoint, _RESUME)
    KINDS["sealed checkpoint"] = Kind(
        1500, write_checkpoint, "*.*", mutate_checkpoint, read_checkpoint, _RESUME, seal_checkpoint
    )
"""A new kind of file that is read is fuzzed by one more line."""
COMMAND_LINES = 500


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two good ones of each kind."""
    root = tmp_path_factory.mktemp("good")
    return {name: [kind.write(root / f"{name}-{i}", i) for i in (0, 1)] for name, kind in KINDS.items()}


def damaged(name: str, number: int, good: list[Path], folder: Path) -> Path:
    """Write case `number` of a kind to a folder; return what is to be read."""
    kind, generator = KINDS[name], np.random.default_rng([number, *name.encode()])
    path = folder / good[0].name
    if kind.files is None:
        path.write_bytes(kind.mutate(good[0].read_bytes(), good[1].read_bytes(), generator))
        return path
    shutil.copytree(good[0], path, copy_function=os.link)
    files = sorted(path.glob(kind.files))
    chosen, other = (files[generator.integers(len(files))] for _ in range(2))
    content = kind.mutate(chosen.read_bytes(), other.read_bytes(), generator)
    chosen.unlink()  # the good one, which it is linked to, stays
    chosen.write_bytes(content)
    kind.seal(path)
    return path


@contextmanager
def one_sentence_is_fine() -> Iterator[None]:
    said = "."
    try:
        yield
    except (DataError, CheckpointError, WeightsFileError, ConfigError) as error:
        said = str(error)
    assert re.fullmatch(r"[^\n]*\.", said), said
    assert len(said) < 1000
    assert "memory that is left" not in said, "more was to be allocated than the file has"


@contextmanager
def in_time() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def little_memory(more: int = 1 << 30) -> Iterator[None]:
    """Have a great allocation fail at once, instead of the machine later."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded with what Linux says of it")
@pytest.mark.timeout(300 * TIMES)
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(name: str, good: dict[str, list[Path]], tmp_path: Path):
    with little_memory():
        KINDS[name].read(good[name][0])  # a good one is no refusal
        for number in range(KINDS[name].cases * TIMES):
            folder = tmp_path / str(number)
            folder.mkdir()
            try:
                path = damaged(name, number, good[name], folder)
                with in_time(), one_sentence_is_fine():
                    KINDS[name].read(path)
            except BaseException as error:
                error.add_note(f"{name}, case {number}")
                raise
            shutil.rmtree(folder)


def test_there_are_ten_thousand_cases():
    assert sum(kind.cases for kind in KINDS.values()) + COMMAND_LINES >= 10_000


# The command line.

_NUMBERS = ("0", "1", "2", "-1", "1.5", "1e3", "1e400", "nan", "inf", "-inf", "", " ", "1_0", "٣", "0x1", "True")
_NUMBERS += ("9" * 30, "9" * 400, "9" * 5000, "1e-320")
_FILES = ("a_file", "a_file/x", "absent", "", ".", "empty", "good.npz", "x" * 300, "x/" * 3000, "λ", "-", "folder")
_WORDS = ("torch", "jax", "moons", "mnist", "dann", "source-only", "target", "adam", "sgd", "float32", "float64", "cpu")
_WORDS += ("cuda", "cuda:99999999999999999999", "cpu:1", "gpu:-1", "meta", "stop", "skip", "", "None", "[red]", "[/]")
_RAMPS = (
    "dann",
    "dann:0",
    "dann:-1",
    "dann:1e308",
    "dann:nan",
    "linear",
    "linear:0:1",
    "linear:1",
    "linear:1e308:-1e308",
)
_RAMPS += ("constant", "constant:1e308", "constant:", ":", "::", "dann:1:2", "constant:" + "9" * 400)

OPTIONS: dict[str, dict[str, Any]] = {
    "train": {
        **dict.fromkeys(("--backend", "--method", "--optimizer", "--dtype", "--device", "--on-bad-data"), _WORDS),
        **dict.fromkeys(("--task", "--data", "--init", "--out"), _FILES),
        **dict.fromkeys(("--seed", "--steps", "--batch-size", "--log-every", "--data-memory"), _NUMBERS),
        **dict.fromkeys(("--learning-rate", "--classifier-learning-rate", "--momentum", "--decay"), _NUMBERS),
        **{"--clip-norm": _NUMBERS, "--schedule": _RAMPS, "--help": (), "--init ": _FILES},
    },
    "demo": {"--steps": _NUMBERS, "--seed": _NUMBERS, "--task": _WORDS, "--out": _FILES, "--help": ()},
    "check": {
        **dict.fromkeys(("--json", "--png"), _FILES),
        "--target": ("", ":", "os", "os:", "os:nothing", "absent:f", "math:pi", "a_file:f", "..:f", "x.y:z"),
        **{"--backend": _WORDS, "--only": _WORDS, "--peers": (), "--help": ()},
    },
    "": {"--version": (), "--help": (), "--nothing": ()},
}
GOOD = {
    "train": [
        *(["--task", "moons"], ["--data", "good.npz"], ["--data", "folder"]),
        ["--task", "moons", "--method", "source-only"],
    ],
    "demo": [[]],
    "check": [["--only", "eager"], ["--backend", "torch"]],
    "": [[]],
}


def command_line(number: int) -> list[str]:
    """Draw a command line: a good one and up to four options with values that may be anything."""
    generator = np.random.default_rng([number, 2016])

    def one(of: Any) -> Any:
        return of[int(generator.integers(len(of)))]

    command = str(generator.choice(list(OPTIONS), p=(0.8, 0.06, 0.1, 0.04)))
    words = [*([command] if command else []), *one(GOOD[command])]
    if command == "train":
        words += ["--backend", str(generator.choice(["torch", "jax"], p=(0.9, 0.1))), "--steps", "2"]
    for _ in range(generator.integers(5)):
        name = one(list(OPTIONS[command])).strip()
        values = OPTIONS[command].get(name, ())
        value = one(values) if values else ""
        if generator.random() < 0.25:
            value = mutate_text(value, generator)
        if generator.random() < 0.05:
            name = mutate_text(name, generator)
        at = len(words) if generator.random() < 0.8 else int(generator.integers(len(words) + 1))
        words[at:at] = [name] if not values else [f"{name}={value}"] if generator.random() < 0.2 else [name, value]
        if generator.random() < 0.05:
            words.pop()
    return words


def stays_here(words: list[str]) -> bool:
    """Whether a command line names nothing outside of the folder that the test is in."""
    return not any(re.search(r"(^|=)/|\.\.", word) for word in words)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Hundreds of trainings of two steps: threads would spend more time on each other than on these."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A folder with a little of everything; training that would be long is interrupted at its first steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("here")
    (tmp_path / "empty").mkdir()
    write_npz(tmp_path / "good", arrays(side=4, samples=6))
    write_shards(tmp_path / "folder", arrays(side=4, samples=6), shards=2)

    import grl.cli.announcement
    import grl.cli.check
    import grl.cli.demo
    import grl.cli.train as cli
    import grl.report

    train, report = cli.run, grl.cli.announcement.report_gradients  # type: ignore[attr-defined]  # where they are used

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    def report_gradients(config: Any, **given: Any) -> Any:
        return interrupt() if config.backend == "jax" else report(config, **given)  # it would compile for seconds

    def run(config: Any, *, progress: Callable[[Update], None], **given: Any) -> Any:
        if config.backend == "jax":
            interrupt()
        long = config.steps > 20
        return train(config, progress=interrupt if long else progress, **given)

    pictures = iter(range(10**9))
    draw = grl.report.draw_report

    def draw_report(result: Any, path: Path, baseline: Any) -> None:
        if next(pictures) % 40 == 0:  # a picture takes a second
            draw(result, path, baseline)
        else:
            path.write_bytes(b"a picture")

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setattr(grl.cli.announcement, "report_gradients", report_gradients)
    monkeypatch.setattr(grl.report, "draw_report", draw_report)
    monkeypatch.setattr(grl.cli.demo, "run_demo", interrupt)
    monkeypatch.setattr(grl.cli.check, "check_form", interrupt)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


RUN = {"config.json", "metrics.json", "metrics.jsonl", "model.safetensors", "report.png"}
LEFT = {
    0: (set(), RUN, {*RUN, "checkpoint.json", "checkpoint-4.safetensors"}),
    1: (set(),),
    2: (set(),),
    3: (
        {"metrics.jsonl", *FAULT_FILES},
        {*FAULT_FILES},
    ),  # weights or a λ end in NaN; before the first record, too
    130: (set(),),
}
"""By exit status: the files that a command may leave."""


def run_in(desk: Path, words: list[str], before: dict[str, bytes]) -> int:
    """Run a command as a shell would; look at its status, what it says, and what it leaves."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), in_time():
        status = main(words)
    said = err.getvalue()
    assert "Traceback" not in said + out.getvalue()
    assert status in LEFT, status
    assert (status in (0, 1)) == (said == ""), said
    assert said == "" or re.fullmatch(r"grl: [^\n]+\n", said), said
    left = {name: content for name, content in everything(desk).items() if before.get(name) != content}
    files = [Path(name) for name, content in left.items() if content]
    assert {file.name for file in files} in LEFT[status], f"status {status} and left {list(left)}"
    assert files or not left, f"status {status} and left {list(left)}"
    for file in filter(Path.is_file, map(Path, left)):  # one without a record is there and empty
        file.unlink()
    for folder in sorted(left, key=len, reverse=True):
        if Path(folder).is_dir():
            Path(folder).rmdir()
    return status


@pytest.mark.skipif("torch" not in INSTALLED, reason="trains in PyTorch")
@pytest.mark.timeout(300 * TIMES)
def test_a_damaged_command_line_runs_or_is_refused_in_one_sentence(desk: Path):
    before, statuses = everything(desk), []
    for number in range(COMMAND_LINES * TIMES):
        words = command_line(number)
        if not stays_here(words):
            continue
        try:
            statuses.append(run_in(desk, words, before))
        except BaseException as error:
            error.add_note(f"command line {number}: {words}")
            raise
    assert {0, 2, 130} <= set(statuses), "what is fuzzed is neither all good nor all bad"


@pytest.mark.skipif("torch" not in INSTALLED, reason="trains in PyTorch")
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_trained_on_or_refused_and_nothing_is_left_half_written(
    name: str, good: dict[str, list[Path]], desk: Path, tmp_path_factory: pytest.TempPathFactory
):
    folder, before = tmp_path_factory.mktemp("damaged"), everything(desk)
    for number in range(10**6, 10**6 + 20 * TIMES):
        path = damaged(name, number, good[name], folder)
        try:
            run_in(desk, ["train", *KINDS[name].options, str(path), "--out", "run"], before)
        except BaseException as error:
            error.add_note(f"{name}, case {number}")
            raise
        shutil.rmtree(path) if path.is_dir() else path.unlink()
