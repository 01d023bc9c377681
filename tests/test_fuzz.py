"""Ten thousand damaged inputs: no traceback, no hang, no great allocation, nothing half written under a final name.

Every case is drawn from its number, so that one that fails can be drawn again: `damaged(kind, number, folder)`. With
GRL_DEEP=1 there are ten times as many.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("PIL")
pytest.importorskip("safetensors")

from numpy.random import Generator

from grl.architecture import Architecture, initial_weights
from grl.checkpoint import CheckpointError, check_weights, load_weights, save_weights
from grl.cli import main
from grl.config import ConfigError
from grl.datasets import DataError, load_path
from grl.demo import installed_backends
from grl.experiment import Update

from layouts import arrays, write_images, write_npy, write_npz, write_packed_npz, write_packed_shards, write_shards
from mutations import mutate, mutate_npz, mutate_png, mutate_safetensors, mutate_text

pytestmark = pytest.mark.trains

INSTALLED = installed_backends()
TIMES = 10 if os.environ.get("GRL_DEEP") else 1
SECONDS = 10  # a case takes milliseconds


@dataclass(frozen=True)
class Kind:
    """A kind of file that is read.

    Args:
        cases: how many are damaged in the default run.
        write: writes a good one, or a folder of good ones, and returns its path; there are two, of other numbers.
        files: the ones of them that are damaged, as a pattern in the folder; none: what `write` returns.
        mutate: damages bytes.
        read: reads what `write` has returned, as a command does.
    """

    cases: int
    write: Callable[[Path, int], Path]
    files: str | None
    mutate: Callable[[bytes, bytes, Generator], bytes]
    read: Callable[[Path], Any]


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


def read_weights(path: Path) -> None:
    check_weights(str(path), load_weights(path), initial_weights(Architecture((2,), 2, hidden=(3,)), 0))


KINDS = {
    "npz": Kind(2000, of_layout(write_npz), None, mutate_npz, read_data),
    "compressed npz": Kind(1000, of_layout(write_packed_npz), None, mutate_npz, read_data),
    "npy": Kind(1500, of_layout(write_npy), "*.npy", mutate, read_data),
    "shards": Kind(1000, of_layout(write_shards, shards=2), "*.npz", mutate_npz, read_data),
    "compressed shards": Kind(700, of_layout(write_packed_shards, shards=2), "*.npz", mutate_npz, read_data),
    "images": Kind(1500, of_layout(write_images), "*/**/*.png", mutate_png, read_data),
    "safetensors": Kind(1500, write_weights, None, mutate_safetensors, read_weights),
}
"""A new kind of file that is read is fuzzed by one more line."""
COMMAND_LINES = 1500


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
    return path


@contextmanager
def one_sentence_is_fine() -> Iterator[None]:
    try:
        yield
    except (DataError, CheckpointError, ConfigError) as error:
        assert re.fullmatch(r"[^\n]+\.", str(error)), str(error)
        assert len(str(error)) < 1000
        assert "memory" not in str(error), "more was to be allocated than the file has"


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
