"""Image folders: `source/CLASS/…`, `target/…` and, for scoring, `test/CLASS/…`."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grl.datasets.errors import BadData, DataError, reading
from grl.datasets.samples import Samples
from grl.datasets.store import Store
from grl.datasets.task import SPLITS, Labels, Split, Task, make_task

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["load_images"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
_EXPECTED = f"image ({', '.join(_FORMATS)})"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm")
_NO_IMAGE = f"no image; expected files named {', '.join(_SUFFIXES)}."
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # at most 8 bits a channel
_LARGEST_SIDE = 4096  # pixels
_LARGEST_FILE = 1 << 27  # bytes; twice the size of the largest image without compression
_WAITING = 1 << 26  # bytes of decoded images that may wait to be stored
# The EXIF tag of an image's orientation, and Pillow's name for what a viewer does at each of its values.
_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_SIDEWAYS = ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")

Pixels = NDArray[np.uint8]


def load_images(folder: str, store: Store, bad: BadData) -> Task:
    """Return the task in folders of images, which are all of one size.

    Every image is decoded once, by as many threads as there are cores, and becomes (3, H, W) in [0, 1]; grey ones get
    three equal channels. Pixels are those that a viewer shows: oriented by the EXIF data, and on white where the image
    is transparent.

    The classes are the folders in `source`, numbered in the order of their names; each has at least one image. Folders
    in `target` and `test` have the same names. Files are taken in the order of their names. Hidden files, and files
    without the suffix of an image, are ignored. Folders inside a class are refused.

    Args:
        folder: the path.
        store: keeps the images.
        bad: decides about an image that cannot be used.

    Raises:
        DataError: a folder is missing, or lies inside a class; a class has no image, or is not a class of the source;
            or an image cannot be used.
        ImportError: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise ImportError(f'{folder}: images need Pillow: pip install "grl[train]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings do not matter here, or are of sizes that are refused below
        return _load(folder, store, bad)


def _load(folder: str, store: Store, bad: BadData) -> Task:
    classes = {name: label for label, name in enumerate(_folders(Path(folder, "source")))}
    if len(classes) < 2:
        raise DataError(f"{folder}: {len(classes)} folders in 'source'; expected at least two, one for each class.")
    splits: dict[str, Split] = {}
    for split in SPLITS:
        root = Path(folder, split)
        if split == "test" and not root.is_dir():
            continue
        paths, labels = _list(root, split, classes)
        size = splits["source"].inputs.shape[2:] if splits else _first_size(paths, bad)
        inputs, kept = _read(root, paths, size, store, bad)
        if labels is not None:
            labels = labels[kept]
            if split == "source":
                _check_no_class_is_lost(root, classes, labels, bad)
        splits[split] = Split(inputs, labels, str(root))
    return make_task(folder, splits, layout="image folders", num_classes=len(classes), skipped=bad.skipped)


def _list(root: Path, split: str, classes: dict[str, int]) -> tuple[list[str], Labels | None]:
    """Return the paths of all images below a folder, and their labels if they are in folders of classes."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected the folders 'source' and 'target'.")
    names = _folders(root)
    loose = [path for path in _images(root) if Path(path).name not in names]
    if names and loose:
        raise DataError(f"{loose[0]}: lies beside folders of classes; expected every image in one of them.")
    if split == "target" and not names:
        paths, labels = loose, None
    else:
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise DataError(f"{root}: {unknown[0]!r} is not a class of the source: {', '.join(list(classes)[:20])}.")
        each = {name: _images(root / name) for name in names}
        for name in names:
            _check_class(root / name, each[name], may_be_empty=split != "source")
        paths = [path for name in names for path in each[name]]
        labels = np.repeat([classes[name] for name in names], [len(each[name]) for name in names]).astype(np.int64)
    if not paths:
        raise DataError(f"{root}: {_NO_IMAGE}")
    return paths, labels


def _check_class(folder: Path, images: list[str], *, may_be_empty: bool) -> None:
    """Refuse a class that has folders, or that has no images."""
    for name in _folders(folder):
        if str(folder / name) not in images:
            raise DataError(f"{folder / name}: a folder inside a class; expected only images.")
    if not (images or may_be_empty):
        raise DataError(f"{folder}: {_NO_IMAGE}")


def _check_no_class_is_lost(root: Path, classes: dict[str, int], labels: Labels, bad: BadData) -> None:
    """Refuse data in which all images of a class were skipped."""
    for name, label in classes.items():
        if label not in labels:
            last = [reason for reason in bad.skipped if reason.startswith(os.path.join(root, name, ""))][-1]
            raise DataError(f"{root / name}: no image can be used; the last one: {last}")


def _folders(root: Path) -> list[str]:
    with reading(str(root), "folder"):
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path) -> list[str]:
    with reading(str(root), "folder"):
        names = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
    return [str(root / name) for name in names if name.lower().endswith(_SUFFIXES)]


def _first_size(paths: Sequence[str], bad: BadData) -> tuple[int, ...]:
    """Return height and width of the first image that can be decoded."""
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
    """Decode and store images; return them with the positions of those that could be used."""
    kept = []
    shape, dtype = (3, *size), np.dtype(np.uint8)
    with store.write(len(paths) * int(np.prod(shape)), None) as writer:
        for i, image in enumerate(_decoded(paths, size)):
            if isinstance(image, DataError):
                bad.handle(image)
                continue
            writer.write(image.ravel())
            kept.append(i)
        if not kept:
            raise DataError(f"{root}: no image can be used; the last one: {bad.skipped[-1]}")
        part = writer.part((len(kept), *shape), dtype)
    return Samples([part], shape, divisor=255), np.array(kept)


def _decoded(paths: Sequence[str], size: tuple[int, ...]) -> Iterator[Pixels | DataError]:
    """Yield the image, or the error, of each path, in order; Pillow releases Python's lock while it decodes."""

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
    """Return an image (3, H, W); its size must be `size`, if given, and is checked before it is decoded."""
    from PIL import Image

    try:
        with reading(path, _EXPECTED), Image.open(_contents(path), formats=_FORMATS) as image:
            turn = _turn(image)
            height, width = (image.width, image.height) if turn in _SIDEWAYS else (image.height, image.width)
            if size is not None and (height, width) != size:
                expected = f"{size[0]}×{size[1]}, as in the first image"
                raise DataError(f"{path}: {height}×{width} pixels; expected {expected}.")
            if max(height, width) > _LARGEST_SIDE:
                raise DataError(f"{path}: {height}×{width} pixels; expected at most {_LARGEST_SIDE} a side.")
            if image.mode not in _MODES:
                raise DataError(f"{path}: an image of mode {image.mode}; expected 8 bits a channel.")
            pixels = _on_white(image) if image.has_transparency_data else image.convert("RGB")
            pixels = pixels if turn is None else pixels.transpose(Image.Transpose[turn])
            return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: more pixels than an image should have; expected at most {_LARGEST_SIDE} a side."
        ) from error


def _turn(image: Image.Image) -> str | None:
    """Return Pillow's name for how a viewer turns an image before it shows it; None: not at all."""
    from PIL import Image

    # Not `image.getexif`: it decodes a whole PNG to find EXIF data, and hides that those of a JPEG are damaged.
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return _TURNS.get(exif.get(_ORIENTATION, 1))


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _contents(path: str) -> io.BytesIO:
    """Return the whole file. If Pillow reads it, it trusts the sizes in it and allocates memory for them."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > _LARGEST_FILE:
            raise DataError(f"{path}: larger than an image should be; expected at most {_LARGEST_FILE >> 20} MiB.")
        return io.BytesIO(file.read())
