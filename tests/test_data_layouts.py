"""`--data` in every layout: the same training bit for bit, bounded memory, and bad shards and images by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from layouts import LAYOUTS, arrays, scaled, write_images, write_npy, write_npz, write_shards

from grl.config import BACKENDS, Config
from grl.datasets import DataError, Samples, Task, load_path
from grl.datasets.ahead import ahead
from grl.datasets.samples import Part
from grl.demo import installed_backends
from grl.experiment import batches, train

pytestmark = pytest.mark.trains

INSTALLED = installed_backends()
each_backend = pytest.mark.parametrize("backend", [
    pytest.param(name, marks=pytest.mark.skipif(name not in INSTALLED, reason=f"{name} is not installed"))
    for name in BACKENDS
])  # fmt: skip
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
@pytest.mark.parametrize("layout", ["compressed shards", "images"])
def test_the_same_seed_is_the_same_training_bit_for_bit_in_every_layout(
    layout: str, backend: str, reference: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    path = LAYOUTS[layout](tmp_path / "data", arrays())
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
    with pytest.raises(IndexError, match="no sample at .*; there are 10"):
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

    found = []
    with pytest.raises(DataError, match=r"the sixth\."):
        found += [found.append(item) for item in ahead(items(), depth=3)]
    assert found == [0, 1, 2, 3, 4]


def test_reading_ahead_is_no_further_ahead_than_it_is_told() -> None:
    made = []
    stream = ahead((made.append(i) or i for i in range(100)), depth=4)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert len(made) <= 3 + 4 + 1


# What cannot be used.


def test_a_folder_is_refused_that_is_of_no_layout_or_of_two(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(
        DataError, match=r"a folder without data; expected are x_source\.npy, .*, or source-\*\.npz, .*/CLASS"
    ):
        load_path(tmp_path)
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "x_source.npy", np.ones((2, 2)))
    with pytest.raises(DataError, match=r"data in more than one layout: x_source\.npy, .* and source/CLASS"):
        load_path(tmp_path)


def save_fortran(path: Path) -> None:
    np.save(path, np.asfortranarray(np.ones((30, 3, 12, 12))))


def save_nan(path: Path) -> None:
    x = np.ones((30, 3, 12, 12), np.float16)
    x[-1, -1, -1, -1] = np.nan
    np.save(path, x)


BAD_NPY = {
    "missing": (Path.unlink, "the key 'x_source' is missing; expected are x_source, y_source and x_target"),
    "empty": (lambda path: path.write_bytes(b""), r"x_source\.npy: truncated or no \.npy file of one array"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"x_source\.npy: truncated or no"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"0"), r"x_source\.npy: truncated or no"),
    "NaN at the end": (save_nan, r"x_source\.npy: the array holds NaN or infinite numbers"),
    "Fortran": (save_fortran, r"x_source\.npy: the array is in Fortran order .*np\.ascontiguousarray"),
    "objects": (lambda path: np.save(path, np.array([{}], object)), r"x_source\.npy.* \(pickled objects are refused\)"),
    "text": (lambda path: np.save(path, np.array(["a"])), r"x_source\.npy: the array has dtype <U1"),
    "fields": (lambda path: np.save(path, np.zeros(3, "i4,f4")), r"x_source\.npy: the array has dtype \["),
    "an archive": (lambda path: np.savez(path.open("wb"), x=1), r"x_source\.npy: truncated or no"),
    "too few": (lambda path: np.save(path, np.ones((29, 3, 12, 12))), r"y_source\.npy: .* shape \(30,\); .* \(29,\)"),
    "other samples": (lambda path: np.save(path, np.ones((30, 5))), r"x_target\.npy: .* shape \(3, 12, 12\)"),
}


@pytest.mark.parametrize("case", BAD_NPY)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the one that the archive is written to
def test_a_bad_npy_file_is_named_in_one_sentence(case: str, tmp_path: Path) -> None:
    spoil, message = BAD_NPY[case]
    path = write_npy(tmp_path / "data", arrays())
    spoil(path / "x_source.npy")
    with pytest.raises(DataError, match=message) as caught:
        load_path(path, memory=0)
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))
    assert str(caught.value).startswith(str(path))


def test_fortran_order_is_read_where_there_is_memory_for_it(tmp_path: Path) -> None:
    given = scaled(arrays())
    np.savez(tmp_path / "data.npz", **{key: np.asfortranarray(array) for key, array in given.items()})
    np.testing.assert_array_equal(load_path(tmp_path / "data.npz").x_source, given["x_source"])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


BAD_SHARDS = {
    "a flipped bit": (flip_a_byte, "truncated or no .npz archive of NumPy arrays"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated or no .npz archive"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or no .npz archive"),
    "NaN": (lambda path: np.savez(path, x=np.full((8, 3, 12, 12), np.nan), y=np.zeros(8, int)), "'x' holds NaN"),
    "no labels": (
        lambda path: np.savez(path, x=np.ones((8, 3, 12, 12))),
        "the key 'y' is missing; expected are x and y",
    ),
    "real labels": (lambda path: np.savez(path, x=np.ones((8, 3, 12, 12)), y=np.ones(8)), "'y' has dtype float64"),
    "other samples": (lambda path: np.savez(path, x=np.ones((8, 5)), y=np.ones(8, int)), r"samples of shape \(5,\)"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
}


@each_memory
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("case", BAD_SHARDS)
def test_a_bad_shard_among_good_ones_is_named_or_left_out_and_counted(
    case: str, save: Any, memory: int, tmp_path: Path
) -> None:
    spoil, message = BAD_SHARDS[case]
    given = scaled(arrays())
    path = write_shards(tmp_path / "data", arrays(), save)
    spoil(path / "source-1.npz")
    with pytest.raises(DataError, match=message) as caught:
        load_path(path, memory=memory)
    assert str(caught.value).startswith(f"{path / 'source-1.npz'}: ")
    task = load_path(path, memory=memory, on_bad_data="skip")
    assert task.skipped == (str(caught.value),)
    kept = np.concatenate([np.arange(8), np.arange(16, 30)])  # shards of 8, 8, 7 and 7 samples
    np.testing.assert_array_equal(task.x_source, given["x_source"][kept])
    np.testing.assert_array_equal(task.y_source, given["y_source"][kept])
    np.testing.assert_array_equal(task.x_target, given["x_target"])


def test_shards_that_are_all_bad_or_not_there_are_refused_whatever_is_skipped(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "data", arrays())
    for i in range(4):
        flip_a_byte(path / f"target-{i}.npz")
    with pytest.raises(DataError, match=r"no target-\*\.npz can be used; the last one: .*target-3\.npz: truncated"):
        load_path(path, on_bad_data="skip")
    for i in range(4):
        (path / f"target-{i}.npz").unlink()
    with pytest.raises(DataError, match=r"no target-\*\.npz; expected are shards of source and of target"):
        load_path(path, on_bad_data="skip")


def save_image(mode: str, size: tuple[int, int] = (12, 12)) -> Any:
    from PIL import Image

    return lambda path: Image.new(mode, size).save(path, "PNG")


BAD_IMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "truncated or no image"),
    "a flipped bit": (flip_a_byte, "truncated or no image"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or no image"),
    "text": (lambda path: path.write_text("no image"), "truncated or no image"),
    "another size": (save_image("RGB", (12, 13)), "13×12 pixels; expected are 12×12, as in the first image"),
    "16 bits": (save_image("I;16"), "an image of mode I;16; expected are 8 bits a channel"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
}


@each_memory
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_among_good_ones_is_named_or_left_out_and_counted(case: str, memory: int, tmp_path: Path) -> None:
    spoil, message = BAD_IMAGES[case]
    given = scaled(arrays())
    path = write_images(tmp_path / "data", arrays())
    spoil(path / "source/class 1/0015.png")
    with pytest.raises(DataError, match=message) as caught:
        load_path(path, memory=memory)
    assert str(caught.value).startswith(f"{path / 'source/class 1/0015.png'}: ")
    task = load_path(path, memory=memory, on_bad_data="skip")
    assert task.skipped == (str(caught.value),)
    kept = np.delete(np.arange(30), 15)
    np.testing.assert_array_equal(task.x_source, given["x_source"][kept])
    np.testing.assert_array_equal(task.y_source, given["y_source"][kept])


def test_the_first_image_may_be_the_bad_one(tmp_path: Path) -> None:
    path = write_images(tmp_path / "data", arrays())
    flip_a_byte(path / "source/class 0/0000.png")
    with pytest.raises(DataError, match=r"0000\.png: truncated"):
        load_path(path)
    assert len(load_path(path, on_bad_data="skip").x_source) == 29


def test_images_of_every_kind_become_three_channels_from_0_to_1(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("source/a", "source/b", "target"):
        (tmp_path / split).mkdir(parents=True)
    grey = np.arange(144, dtype=np.uint8).reshape(12, 12)
    for i, mode in enumerate(("L", "RGB", "P", "RGBA")):
        Image.fromarray(grey).convert(mode).save(tmp_path / f"source/a/{i}.PNG")
    Image.fromarray(grey).save(tmp_path / "source/b/0.jpg", quality=100)
    Image.fromarray(grey).save(tmp_path / "target/0.bmp")
    (tmp_path / "target/.hidden.png").write_text("left alone")
    (tmp_path / "target/notes.txt").write_text("left alone")
    task = load_path(tmp_path)
    for image in task.x_source[:4]:
        np.testing.assert_array_equal(image, np.stack([grey.astype(np.float32) / 255] * 3))
    np.testing.assert_allclose(task.x_source[4], task.x_source[0], atol=3 / 255)
    assert (task.y_source.tolist(), len(task.x_target)) == ([0, 0, 0, 0, 1], 1)


def test_folders_of_classes_in_the_target_are_its_labels(tmp_path: Path) -> None:
    path = write_images(tmp_path / "data", arrays())
    (path / "target/class 2").mkdir()
    for image in (path / "target").glob("*.png"):
        image.rename(path / "target/class 2" / image.name)
    assert load_path(path).y_target.tolist() == [2] * 20
    (path / "test/class 1").rename(path / "test/cats")
    with pytest.raises(DataError, match=r"data/test: 'cats' is no class of the source: class 0, class 1, class 2\."):
        load_path(path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["source/a", "target"], "1 folders in 'source'; expected are at least two, one for each class"),
        (["source/a", "source/b"], r"source: no image; expected are files named \.png"),
        (["source"], "0 folders in 'source'"),
    ],
)
def test_image_folders_that_lack_something_are_refused(folders: list[str], message: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        load_path(tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'images need Pillow: pip install "grl\[train\]"'):
        load_path(tmp_path)


def test_a_full_disk_is_never_a_reason_to_leave_data_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shards(tmp_path / "data", arrays(), np.savez_compressed)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: os.statvfs_result and type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"unpacking the data takes 0 MiB of disk and 0 MiB are free; TMPDIR names"):
        load_path(path, memory=0, on_bad_data="skip")
    assert load_path(path, memory=1).skipped == ()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_while_unpacking_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shards(tmp_path / "data", arrays(), np.savez_compressed)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "wb"))
    with pytest.raises(DataError, match=r"the data cannot be unpacked: No space left on device\."):
        load_path(path, memory=0, on_bad_data="skip")


@pytest.mark.skipif(not INSTALLED, reason="needs a framework")
def test_what_was_skipped_is_counted_in_metrics_json_and_named_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer")
    from grl.cli import main

    path = write_shards(tmp_path / "data", arrays())
    flip_a_byte(path / "source-2.npz")
    words = ["train", "--data", path, "--backend", INSTALLED[0], "--steps", "1", "--out", tmp_path / "run"]
    assert main([str(word) for word in words]) == 2
    sentence = f"{path}/source-2.npz: truncated or no .npz archive of NumPy arrays."
    assert capsys.readouterr() == ("", f"grl: {sentence}\n")
    assert not (tmp_path / "run").exists()
    assert main([str(word) for word in [*words, "--on-bad-data", "skip"]]) == 0
    out = capsys.readouterr().out
    assert f"{path}: .npz shards: 23 source, 20 target, 15 test samples of shape (3, 12, 12), 3 classes\n" in out
    assert f"Left out: 1, the first: {sentence}\n" in out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["skipped_data"] == {"count": 1, "first": [sentence]}


# Memory.

on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
FOLLOWS_MEMORY = """
import sys
from grl.datasets import load_path
from grl.experiment import batches
from grl.config import Config

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
    for i in range(shards):
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
