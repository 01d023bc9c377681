"""`--data` in every layout: the same samples, batches and training, bit for bit, and in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from grl.datasets import DataError, Samples, Task, load_path
from grl.datasets.prefetch import prefetch
from grl.datasets.samples import Part
from grl.experiment import batches, train
from grl.experiment.config import Config
from tests.support.data_layouts import LAYOUTS, arrays, scaled, write_images, write_npy, write_npz
from tests.support.installed import INSTALLED, each_backend

pytestmark = pytest.mark.trains

each_memory = pytest.mark.parametrize("memory", [0, 1024], ids=["in files", "in memory"])


@each_memory
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples_in_files_and_in_memory(layout: str, memory: int, tmp_path: Path) -> None:
    given = arrays()
    task = load_path(LAYOUTS[layout](tmp_path / "data", given), memory=memory)
    assert (task.num_classes, task.sample_shape, task.y_target, task.skipped) == (3, (3, 12, 12), None, ())
    for key, array in scaled(given).items():
        found = getattr(task, key)
        assert found.dtype == (np.float32 if key[0] == "x" else np.int64)
        np.testing.assert_array_equal(found, array)
    rows = np.random.default_rng(1).integers(-30, 30, 50)
    np.testing.assert_array_equal(task.x_source[rows], scaled(given)["x_source"][rows])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of each backend on the plain arrays of one `.npz` file."""
    path = write_npz(tmp_path_factory.mktemp("reference") / "data", arrays())
    return {backend: train(Config(backend=backend, data=str(path), steps=12, batch_size=8)) for backend in INSTALLED}


@pytest.mark.parametrize("method", ["dann", "source-only"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_seed_is_the_same_batches_bit_for_bit_in_every_layout(
    layout: str, method: str, tmp_path: Path
) -> None:
    given, config = arrays(), Config(method=method, batch_size=8, seed=5)
    plain = Task("plain", **scaled(given), y_target=None, num_classes=3)
    task = load_path(LAYOUTS[layout](tmp_path / "data", given), memory=0)
    for one, other in islice(zip(batches(plain, config), batches(task, config), strict=True), 20):
        for expected, found in zip(one, other, strict=True):
            np.testing.assert_array_equal(found, expected, strict=True)


@each_backend
def test_image_folders_give_the_same_training_as_an_npz_bit_for_bit(
    backend: str, reference: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    path = write_images(tmp_path / "data", arrays())
    result = train(Config(backend=backend, data=str(path), data_memory=0, steps=12, batch_size=8))
    assert result.metrics["history"] == reference[backend].metrics["history"]
    for name, array in reference[backend].weights.items():
        assert result.weights[name].tobytes() == array.tobytes(), name
    for score in ("source_accuracy", "target_accuracy", "domain_accuracy", "proxy_a_distance"):
        assert result.metrics[score] == reference[backend].metrics[score], score


# Samples are indexed like an array.


@pytest.mark.parametrize("index", [
    *(3, -1, slice(None), slice(2, 9, 3), slice(9, 2, -2), slice(4, 4), [1, 1, 8], [-10, 9]),
    *(np.arange(10) % 3 == 0, np.arange(0), np.int64(4)),
], ids=str)  # fmt: skip
def test_samples_are_indexed_like_an_array(index: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(10, 2, 3)).astype(">f8")
    array.tofile(tmp_path / "x")
    dtype = array.dtype
    parts = [Part(4, dtype, array[:4]), Part(5, dtype, str(tmp_path / "x"), 4 * 48), Part(1, dtype, array[9:])]
    samples = Samples(parts, (2, 3))
    assert (samples.shape, samples.ndim, len(samples)) == (array.shape, 3, 10)
    np.testing.assert_array_equal(samples[index], array.astype(np.float32)[index], strict=True)


@pytest.mark.parametrize("index", [10, -11, [0, 10]])
def test_a_sample_that_is_not_there_is_an_index_error(index: Any) -> None:
    samples = Samples([Part(10, np.dtype(int), np.arange(20).reshape(10, 2))], (2,))
    with pytest.raises(IndexError, match=r"no sample at .*; there are 10"):
        samples[index]


def test_a_file_that_becomes_shorter_during_training_is_an_error_and_no_crash(tmp_path: Path) -> None:
    task = load_path(write_npy(tmp_path / "data", arrays()), memory=0)
    with (tmp_path / "data/x_source.npy").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match=r"x_source\.npy: has become shorter since training began"):
        task.x_source[29]
    (tmp_path / "data/x_target.npy").unlink()
    with pytest.raises(DataError, match=r"x_target\.npy: cannot be read: No such file"):
        task.x_target[0]


def test_reading_ahead_keeps_the_order_and_hands_on_what_is_raised_in_its_turn() -> None:
    def items() -> Any:
        yield from range(5)
        raise DataError("the sixth.")

    stream = prefetch(items(), depth=3)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"the sixth\."):
        next(stream)


def test_reading_ahead_is_no_further_ahead_than_it_is_told() -> None:
    made = []
    stream = prefetch((made.append(i) or i for i in range(100)), depth=4)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert len(made) <= 3 + 4 + 1


def test_reading_ahead_makes_an_item_before_it_is_asked_for() -> None:
    third_made = Event()

    def items() -> Any:
        yield from range(2)
        third_made.set()
        yield 2

    stream = prefetch(items(), depth=3)
    assert next(stream) == 0
    assert third_made.wait(5)
    stream.close()


# Memory.


@each_backend
def test_a_run_never_asks_for_more_than_a_block_of_samples(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores and pictures too: of 1,200 samples, which are read batch by batch, no more than 500 are there at once."""
    pytest.importorskip("sklearn")
    generator, asked, read = np.random.default_rng(0), [], Samples.read
    x = generator.normal(size=(1200, 4))
    np.savez(tmp_path / "data.npz", x_source=x, y_source=np.arange(1200) % 3, x_target=x, x_test=x, y_test=[0, 1] * 600)
    monkeypatch.setattr(Samples, "read", lambda self, rows: (asked.append(len(rows)), read(self, rows))[1])
    train(Config(backend=backend, data=str(tmp_path / "data.npz"), data_memory=0, steps=12))
    assert max(asked) == 500
    assert sum(asked) > 3 * 1200


on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
FOLLOWS_MEMORY = """
import sys
from grl.datasets import load_path
from grl.experiment import batches
from grl.experiment.config import Config

def peak():  # not ru_maxrss, which a process inherits from the one that started it
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
task = load_path(sys.argv[1], memory=int(sys.argv[2]))
for _ in zip(range(200), batches(task, Config(batch_size=64))):
    pass
for start in range(0, len(task.x_source), 500):
    task.x_source[start : start + 500]
print(task.x_source.shape[0], before, peak() - before)
"""


def write_large(layout: str, path: Path) -> tuple[Path, int]:
    """A set of about 200 MiB; return where it is and its MiB as it is stored."""
    shape, shards, generator = (200, 3, 64, 64), 32, np.random.default_rng(0)
    path.mkdir()
    if layout == "images":
        from PIL import Image

        for split, number in (("source", 12000), ("target", 6000)):
            for i, image in enumerate(generator.integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)):
                folder = path / split / (f"class {i % 2}" if split == "source" else "")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{i}.png", compress_level=0)
                for copy in range(1, number // 16):
                    os.link(folder / f"{i}.png", folder / f"{i}-{copy}.png")
        return path, 18000 * 3 * 64 * 64 >> 20
    files = []
    for _ in range(shards):
        x = np.repeat(generator.integers(0, 256, (shape[0] // 20, *shape[1:]), dtype=np.uint8), 20, axis=0)
        files.append(x.astype(np.float16))
    if layout == "npy":
        for split in ("source", "target"):
            half = files[::2] if split == "source" else files[1::2]
            whole = np.lib.format.open_memmap(path / f"x_{split}.npy", "w+", np.float16, (16 * 200, *shape[1:]))
            for i, x in enumerate(half):
                whole[i * 200 : (i + 1) * 200] = x
        np.save(path / "y_source.npy", np.arange(16 * 200) % 2)
    else:
        save = np.savez_compressed if layout == "compressed shards" else np.savez
        for i, x in enumerate(files):
            save(path / f"{('source', 'target')[i % 2]}-{i}.npz", x=x, y=np.arange(200) % 2)
    return path, shards * int(np.prod(shape)) * 2 >> 20


@on_linux
@pytest.mark.parametrize("layout", ["npy", "shards", "compressed shards", "images"])
def test_memory_stays_bounded_on_a_set_larger_than_the_bound(layout: str, tmp_path: Path) -> None:
    path, size = write_large(layout, tmp_path / "data")
    bound, rest = 32, 64  # MiB of `--data-memory`; and of batches, a block that is scored, decoded images that wait
    assert size > 4 * bound
    command = [sys.executable, "-c", FOLLOWS_MEMORY, str(path), str(bound)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    grown = int(done.stdout.split()[2])
    print(f"{layout}: {size} MiB with --data-memory {bound}: grew by {grown} MiB")
    assert grown < bound + rest


@on_linux
def test_the_measure_of_memory_can_fail(tmp_path: Path) -> None:
    path, size = write_large("npy", tmp_path / "data")
    command = [sys.executable, "-c", FOLLOWS_MEMORY, str(path), "1024"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout.split()[2]) > size * 0.9
