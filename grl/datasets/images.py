"""Image folders: `source/CLASS/…`, `target/…` and, to be scored, `test/CLASS/…`."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grl.datasets.errors import BadData, DataError, reading
from grl.datasets.samples import Samples
from grl.datasets.store import Store
from grl.datasets.task import Labels, Task, make_task

__all__ = ["load_images"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
_EXPECTED = f"image ({', '.join(_FORMATS)})"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits a channel, at most
_LARGEST = 4096  # pixels of a side
_LARGEST_FILE = 1 << 27  # bytes; twice what the largest image takes as it is
_WAITING = 1 << 26  # bytes of decoded images that wait to be kept

Pixels = NDArray[np.uint8]


def load_images(folder: str, store: Store, bad: BadData) -> Task:
    """Return the task in folders of images, which are all of one size.

    Every image is decoded once, by as many threads as there are cores, and becomes (3, H, W) in [0, 1]; grey ones get
    three equal channels. The classes are the folders in `source`, numbered in the order of their names; those in
    `target` and `test` go by the same names. Files are taken in the order of their names; what is hidden, and what is
    not named like an image, is left alone.

    Args:
        folder: the path.
        store: where the images are kept.
        bad: what to do with an image that cannot be used.

    Raises:
        DataError: a folder is missing or is of no class of the source, or an image cannot be used.
        ImportError: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise ImportError(f'{folder}: images need Pillow: pip install "grl[train]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's: of what does not matter here, and of sizes that are refused below
        return _load(folder, store, bad)


def _load(folder: str, store: Store, bad: BadData) -> Task:
    classes = {name: label for label, name in enumerate(_folders(Path(folder, "source")))}
    if len(classes) < 2:
        raise DataError(f"{folder}: {len(classes)} folders in 'source'; expected are at least two, one for each class.")
    inputs: dict[str, Samples] = {}
    labels: dict[str, Labels] = {}
    for split in ("source", "target", "test"):
        root = Path(folder, split)
        if split == "test" and not root.is_dir():
            continue
        paths, known = _list(root, classes, labelled=split != "target")
        size = inputs["source"].shape[2:] if inputs else _first_size(paths, bad)
        inputs[split], kept = _read(root, paths, size, store, bad)
        if known is not None:
            labels[split] = known[kept]
    where = {split: str(Path(folder, split)) for split in labels}
    return make_task(
        folder,
        inputs,
        labels,
        where=where,
        layout="image folders",
        num_classes=len(classes),
        skipped=bad.skipped,
    )


def _list(root: Path, classes: dict[str, int], *, labelled: bool) -> tuple[list[str], Labels | None]:
    """The paths of all images below a folder, and their labels if they stand in folders of classes."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected are the folders 'source' and 'target'.")
    names = _folders(root)
    if not labelled and not names:
        paths, labels = _images(root), None
    else:
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise DataError(f"{root}: {unknown[0]!r} is no class of the source: {', '.join(list(classes)[:20])}.")
        each = {name: _images(root / name) for name in names}
        paths = [path for name in names for path in each[name]]
        labels = np.repeat([classes[name] for name in names], [len(each[name]) for name in names]).astype(np.int64)
    if not paths:
        raise DataError(f"{root}: no image; expected are files named {', '.join(_SUFFIXES)}.")
    return paths, labels


def _folders(root: Path) -> list[str]:
    with reading(str(root), "folder"):
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path) -> list[str]:
    with reading(str(root), "folder"):
        names = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
    return [str(root / name) for name in names if name.lower().endswith(_SUFFIXES)]


def _first_size(paths: Sequence[str], bad: BadData) -> tuple[int, ...]:
    """Height and width of the first image that can be decoded."""
    for path in paths:
        try:
            return _decode(path, None).shape[1:]
        except DataError as error:
            if bad.stops:
                raise
            last = error
    raise DataError(f"no image can be used; the last one: {last}") from last


def _read(
    root: Path, paths: Sequence[str], size: tuple[int, ...], store: Store, bad: BadData
) -> tuple[Samples, NDArray[np.int64]]:
    """Decode and keep images; return them with the positions of those that could be used."""
    kept = []
    shape, dtype = (3, *size), np.dtype(np.uint8)
    with store.write(len(paths) * int(np.prod(shape)), None) as writer:
        for i, image in enumerate(_decoded(paths, size)):
            if isinstance(image, DataError):
                bad.meet(image)
                continue
            writer.write(image.ravel())
            kept.append(i)
        if not kept:
            raise DataError(f"{root}: no image can be used; the last one: {bad.skipped[-1]}")
        part = writer.part((len(kept), *shape), dtype)
    return Samples([part], shape, divisor=255), np.array(kept)


def _decoded(paths: Sequence[str], size: tuple[int, ...]) -> Iterator[Pixels | DataError]:
    """Yield what comes of each path, in order; Pillow lets go of Python's lock while it decodes."""

    def decode(path: str) -> Pixels | DataError:
        try:
            return _decode(path, size)
        except DataError as error:
            return error

    threads = os.cpu_count() or 1
    at_once = max(threads, _WAITING // (3 * size[0] * size[1]))
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(paths), at_once):
            yield from pool.map(decode, paths[start : start + at_once])


def _decode(path: str, size: tuple[int, ...] | None) -> Pixels:
    """Return an image (3, H, W) of a size, or of whatever size it has, which is looked at before it is decoded."""
    from PIL import Image

    try:
        with reading(path, _EXPECTED), Image.open(_contents(path), formats=_FORMATS) as image:
            height, width = image.height, image.width
            if size is not None and (height, width) != size:
                expected = f"{size[0]}×{size[1]}, as in the first image"
                raise DataError(f"{path}: {height}×{width} pixels; expected are {expected}.")
            if max(height, width) > _LARGEST:
                raise DataError(f"{path}: {height}×{width} pixels; expected are at most {_LARGEST} a side.")
            if image.mode not in _MODES:
                raise DataError(f"{path}: an image of mode {image.mode}; expected are 8 bits a channel.")
            return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: more pixels than an image should have; at most {_LARGEST} a side.") from error


def _contents(path: str) -> io.BytesIO:
    """The whole file: Pillow, reading by itself, takes the sizes in it at their word, and the memory for them."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > _LARGEST_FILE:
            raise DataError(f"{path}: larger than an image should be; expected are at most {_LARGEST_FILE >> 20} MiB.")
        return io.BytesIO(file.read())
