"""One small data set, written in each layout that `--data` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

SPLITS = ("source", "target", "test")


def arrays(side: int = 12, samples: int = 30, classes: int = 3) -> Arrays:
    """Return random images as bytes, (N, 3, side, side), sorted by class as in folders; the target has no labels."""
    generator = np.random.default_rng(0)
    sizes = {"source": samples, "target": samples // 3 * 2, "test": samples // 2}
    images = {f"x_{s}": generator.integers(0, 256, (n, 3, side, side), dtype=np.uint8) for s, n in sizes.items()}
    return {**images, **{f"y_{s}": np.sort(np.arange(sizes[s]) % classes) for s in ("source", "test")}}


def scaled(given: Arrays) -> Arrays:
    """Return the images as numbers from 0 to 1, as the loader of images makes them."""
    return {key: a.astype(np.float32) / 255 if key[0] == "x" else a for key, a in given.items()}


def write_npz(path: Path, given: Arrays) -> Path:
    np.savez(path.with_suffix(".npz"), allow_pickle=False, **scaled(given))
    return path.with_suffix(".npz")


def write_packed_npz(path: Path, given: Arrays) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), allow_pickle=False, **scaled(given))
    return path.with_suffix(".npz")


def write_npy(path: Path, given: Arrays) -> Path:
    path.mkdir()
    for key, array in scaled(given).items():
        np.save(path / f"{key}.npy", array)
    return path


def write_shards(path: Path, given: Arrays, save: Callable[..., None] = np.savez, shards: int = 4) -> Path:
    path.mkdir()
    given = scaled(given)
    for split in SPLITS:
        for i, rows in enumerate(np.array_split(np.arange(len(given[f"x_{split}"])), shards)):
            labels = {"y": given[f"y_{split}"][rows]} if f"y_{split}" in given else {}
            save(path / f"{split}-{i}.npz", x=given[f"x_{split}"][rows], **labels)
    return path


def write_packed_shards(path: Path, given: Arrays, shards: int = 4) -> Path:
    return write_shards(path, given, np.savez_compressed, shards)


def write_images(path: Path, given: Arrays) -> Path:
    from PIL import Image

    for split in SPLITS:
        for i, image in enumerate(given[f"x_{split}"]):
            folder = path / split
            if f"y_{split}" in given:
                folder /= f"class {given[f'y_{split}'][i]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:04}.png")
    return path


LAYOUTS: dict[str, Callable[[Path, Arrays], Path]] = {
    "npz": write_npz,
    "compressed npz": write_packed_npz,
    "npy": write_npy,
    "shards": write_shards,
    "compressed shards": write_packed_shards,
    "images": write_images,
}
