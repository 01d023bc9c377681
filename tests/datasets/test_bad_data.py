"""Data that cannot be used are named in one sentence; a shard or an image among good ones can be left out, counted."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from grl.datasets import DataError, load_path
from tests.support.data_layouts import arrays, scaled, write_images, write_npy, write_shards
from tests.support.installed import INSTALLED

pytestmark = pytest.mark.trains

each_memory = pytest.mark.parametrize("memory", [0, 1024], ids=["in files", "in memory"])


def test_a_folder_is_refused_that_is_of_no_layout_or_of_two(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(
        DataError, match=r"a folder without data; expected x_source\.npy, .*, or source-\*\.npz, .*/CLASS"
    ):
        load_path(tmp_path)
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "x_source.npy", np.ones((2, 2)))
    with pytest.raises(DataError, match=r"data in more than one layout: x_source\.npy, .* and source/CLASS"):
        load_path(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("write", [write_npy, write_shards, write_images])
def test_a_pipe_is_refused_and_not_waited_for(write: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "data", arrays())
    first = next(entry for entry in sorted(path.rglob("*")) if entry.is_file())
    first.unlink()
    os.mkfifo(first)
    for one in (path, first):
        with pytest.raises(DataError, match=f"{first.name}: a pipe or a device; expected a file"):
            load_path(one)


def save_fortran(path: Path) -> None:
    np.save(path, np.asfortranarray(np.ones((30, 3, 12, 12))))


def save_nan(path: Path) -> None:
    x = np.ones((30, 3, 12, 12), np.float16)
    x[-1, -1, -1, -1] = np.nan
    np.save(path, x)


BAD_NPY = {
    "missing": (Path.unlink, "the key 'x_source' is missing; expected x_source, y_source and x_target"),
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
        "the key 'y' is missing; expected x and y",
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
    with pytest.raises(DataError, match=r"no target-\*\.npz; expected shards of source and of target"):
        load_path(path, on_bad_data="skip")


def test_an_image_is_not_taken_at_its_word_about_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would allocate what a chunk says it holds, here 2 GiB less a byte, and more pixels than a screen has."""
    import struct
    import tracemalloc
    import zlib

    from PIL.ImageFile import ImageFile

    path = write_images(tmp_path / "data", arrays())
    chosen = path / "source/class 1/0015.png"
    good = chosen.read_bytes()
    at = good.index(b"IDAT")
    chosen.write_bytes(good[: at - 4] + struct.pack(">I", 2**31 - 1) + good[at:])
    for name, side in (("0000", 60000), ("0001", 9000)):  # of which only the first is too large for Pillow itself
        header = b"IHDR" + struct.pack(">II", side, side) + good[24:29]
        (path / f"target/{name}.png").write_bytes(
            good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]
        )
    decode, decoded = ImageFile.load, set()  # which asks for the pixels, out of reach of tracemalloc
    monkeypatch.setattr(ImageFile, "load", lambda image: (decoded.add(image.size), decode(image))[1])
    tracemalloc.start()
    try:
        task = load_path(path, on_bad_data="skip")
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert decoded == {(12, 12)}
    assert len(task.x_target) == 18
    assert re.search(
        r"0000\.png: more pixels than an image should have; expected at most 4096 a side\.$", task.skipped[-2]
    )
    assert re.search(r"0001\.png: 9000×9000 pixels; expected 12×12, as in the first image\.$", task.skipped[-1])


def save_narrow(path: Path) -> None:
    save_image("1", (4097, 1))(path)


def save_sparse(path: Path) -> None:
    os.truncate(path, (1 << 27) + 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (save_narrow, r": 1×4097 pixels; expected at most 4096 a side\.$"),
        (save_sparse, r": larger than an image should be; expected at most 128 MiB\.$"),
    ],
    ids=["pixels", "bytes"],
)
def test_the_first_image_has_no_size_to_be_held_against_but_a_largest_one(
    spoil: Any, message: str, tmp_path: Path
) -> None:
    path = write_images(tmp_path / "data", arrays())
    spoil(path / "source/class 0/0000.png")
    with pytest.raises(DataError, match=r"0000\.png" + message):
        load_path(path)


def save_image(mode: str, size: tuple[int, int] = (12, 12)) -> Any:
    from PIL import Image

    return lambda path: Image.new(mode, size).save(path, "PNG")


BAD_IMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "truncated or no image"),
    "a flipped bit": (flip_a_byte, "truncated or no image"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or no image"),
    "text": (lambda path: path.write_text("no image"), "truncated or no image"),
    "another size": (save_image("RGB", (12, 13)), "13×12 pixels; expected 12×12, as in the first image"),
    "16 bits": (save_image("I;16"), "an image of mode I;16; expected 8 bits a channel"),
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


def test_a_class_without_an_image_that_can_be_used_is_refused_whatever_is_skipped(tmp_path: Path) -> None:
    path = write_images(tmp_path / "data", arrays())
    (path / "source/class 10").mkdir()
    (path / "source/class 10/0000.tif").write_bytes(b"no format of ours")
    with pytest.raises(DataError, match=r"source/class 10: no image; expected files named \.png, .*\.pgm\.$"):
        load_path(path, on_bad_data="skip")
    for name in ("0000.png", "0001.png"):
        (path / "source/class 10" / name).write_text("no image")
    with pytest.raises(
        DataError, match=r"source/class 10: no image can be used; the last one: .*/source/class 10/0001\.png: truncated"
    ):
        load_path(path, on_bad_data="skip")
    (path / "source/class 10/0001.png").write_bytes((path / "source/class 0/0001.png").read_bytes())
    assert load_path(path, on_bad_data="skip").num_classes == 4


@pytest.mark.parametrize("folder", ["source/class 1", "target/class 1", "test/class 1"])
def test_a_folder_inside_of_a_class_is_refused_by_name(folder: str, tmp_path: Path) -> None:
    path = write_images(tmp_path / "data", arrays())
    if folder.startswith("target"):
        sort_target(path, "class 1")
    (path / folder / ".hidden").mkdir()
    load_path(path)
    (path / folder / "session1").mkdir()
    with pytest.raises(DataError, match=rf"{folder}/session1: a folder inside a class; expected only images\.$"):
        load_path(path, on_bad_data="skip")


@pytest.mark.parametrize("split", ["source", "target", "test"])
def test_an_image_beside_folders_of_classes_is_refused_by_name(split: str, tmp_path: Path) -> None:
    path = write_images(tmp_path / "data", arrays())
    if split == "target":
        sort_target(path, "class 1")
    save_image("RGB")(path / split / "0.png")
    message = rf"{split}/0\.png: lies beside folders of classes; expected every image in one of them\.$"
    with pytest.raises(DataError, match=message):
        load_path(path, on_bad_data="skip")


def test_images_of_every_kind_become_three_channels_from_0_to_1(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("source/a", "source/b", "target"):
        (tmp_path / split).mkdir(parents=True)
    grey = np.arange(144, dtype=np.uint8).reshape(12, 12)
    for i, mode in enumerate(("L", "RGB", "P", "RGBA")):
        Image.fromarray(grey).convert(mode).save(tmp_path / f"source/a/{i}.PNG")
    Image.fromarray(grey).save(tmp_path / "source/b/0.jpg", quality=100)
    Image.fromarray(grey).save(tmp_path / "target/0.bmp")
    (tmp_path / "source/.ipynb_checkpoints").mkdir()
    Image.fromarray(grey).save(tmp_path / "source/.ipynb_checkpoints/0.png")
    (tmp_path / "target/.hidden.png").write_text("left alone")
    (tmp_path / "target/notes.txt").write_text("left alone")
    task = load_path(tmp_path)
    for image in task.x_source[:4]:
        np.testing.assert_array_equal(image, np.stack([grey.astype(np.float32) / 255] * 3))
    np.testing.assert_allclose(task.x_source[4], task.x_source[0], atol=3 / 255)
    assert (task.y_source.tolist(), len(task.x_target), task.num_classes) == ([0, 0, 0, 0, 1], 1, 2)


@pytest.fixture
def one_image(tmp_path: Path) -> Any:
    """What becomes of one image that is saved by `save(path)`, as (H, W, 3) bytes."""

    def load(suffix: str, save: Any) -> np.ndarray:
        for folder in ("source/a", "source/b", "target"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            save(tmp_path / folder / f"0.{suffix}")
        found = load_path(tmp_path).x_target[0]
        return (found * 255).round().astype(np.uint8).transpose(1, 2, 0)

    return load


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_image_is_turned_as_viewers_do(suffix: str, orientation: int, one_image: Any, tmp_path: Path) -> None:
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation  # 0 and 9 are none
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    lossless = {"lossless": True} if suffix == "webp" else {}
    found = one_image(suffix, lambda path: Image.fromarray(pixels).save(path, exif=exif, **lossless))
    with Image.open(tmp_path / f"target/0.{suffix}") as image:
        np.testing.assert_array_equal(found, ImageOps.exif_transpose(image))


def transparent(kind: str) -> tuple[Any, list[int]]:
    """Three pixels of the greys 10, 200 and 77, and how opaque they are; as a function that saves them."""
    from PIL import Image

    grey, alpha = (Image.frombytes("L", (3, 1), bytes(values)) for values in ((10, 200, 77), (0, 128, 255)))
    if kind in ("LA", "RGBA"):
        image = Image.merge(kind, [*[grey] * (len(kind) - 1), alpha])
        return image.save, [0, 128, 255]
    if kind == "P":
        image = Image.frombytes("P", (3, 1), bytes(range(3)))
        image.putpalette([value for value in (10, 200, 77) for _ in "RGB"])
        return partial(image.save, transparency=bytes((0, 128, 255))), [0, 128, 255]
    return partial(grey.convert(kind).save, transparency=10 if kind == "L" else (10, 10, 10)), [0, 255, 255]


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_on_white(kind: str, one_image: Any) -> None:
    save, alpha = transparent(kind)
    grey = np.array([10, 200, 77])
    expected = (grey * alpha + 255.0 * (255 - np.array(alpha))) / 255
    found = one_image("png", save)
    assert (found == found[..., :1]).all()
    np.testing.assert_allclose(found[0, :, 0], expected, atol=0.5)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_data_are_named_in_one_sentence(suffix: str, one_image: Any) -> None:
    from PIL import Image

    image = Image.new("RGB", (12, 8))
    with pytest.raises(DataError, match=rf"a/0\.{suffix}: truncated or no image \(PNG, JPEG, WEBP, BMP, PPM\)\.$"):
        one_image(suffix, lambda path: image.save(path, exif=b"Exif\0\0no TIFF header"))


def sort_target(path: Path, name: str) -> None:
    """Put the target's images into a folder of a class."""
    (path / "target" / name).mkdir()
    for image in (path / "target").glob("*.png"):
        image.rename(path / "target" / name / image.name)


def test_folders_of_classes_in_the_target_are_its_labels(tmp_path: Path) -> None:
    path = write_images(tmp_path / "data", arrays())
    sort_target(path, "class 2")
    assert load_path(path).y_target.tolist() == [2] * 20
    (path / "test/class 1").rename(path / "test/cats")
    with pytest.raises(DataError, match=r"data/test: 'cats' is not a class of the source: class 0, class 1, class 2\."):
        load_path(path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["source/a", "target"], "1 folders in 'source'; expected at least two, one for each class"),
        (["source/a", "source/b"], r"source/a: no image; expected files named \.png"),
        (["source"], "0 folders in 'source'"),
    ],
)
def test_image_folders_that_lack_something_are_refused(folders: list[str], message: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        load_path(tmp_path)


def test_a_target_without_an_image_is_refused(tmp_path: Path) -> None:
    path = write_images(tmp_path / "data", arrays())
    for image in (path / "target").glob("*.png"):
        image.rename(image.with_suffix(".tif"))
    with pytest.raises(DataError, match=r"data/target: no image; expected files named \.png"):
        load_path(path)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'images need Pillow: pip install "grl\[train\]"'):
        load_path(tmp_path)


def test_a_full_disk_is_never_a_reason_to_leave_data_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shards(tmp_path / "data", arrays(), np.savez_compressed)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"unpacking the data takes 0 MiB of disk and 0 MiB are free; TMPDIR names"):
        load_path(path, memory=0, on_bad_data="skip")
    assert load_path(path, memory=1).skipped == ()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_while_unpacking_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shards(tmp_path / "data", arrays(), np.savez_compressed)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "wb"))  # noqa: SIM115
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
