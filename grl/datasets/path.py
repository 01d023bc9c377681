"""The user's own data at a path, in any of four layouts."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike, fspath
from pathlib import Path

from grl.datasets.errors import BadData, DataError
from grl.datasets.images import load_images
from grl.datasets.npy import load_npy
from grl.datasets.npz import load_npz
from grl.datasets.shards import load_shards
from grl.datasets.store import Store
from grl.datasets.task import Task

__all__ = ["load_path"]

_LAYOUTS = {
    "x_*.npy": "x_source.npy, y_source.npy, x_target.npy",
    "*-*.npz": "source-*.npz, target-*.npz",
    "source/": "source/CLASS/*.png, target/*.png",
}


def load_path(
    path: str | PathLike[str],
    *,
    memory: int = 1024,
    on_bad_data: str = "stop",
    follow: Callable[[int], None] | None = None,
) -> Task:
    """Return the task in one `.npz` file or in a folder, whose layout is detected from its files.

    A folder holds either `x_source.npy`, `y_source.npy`, `x_target.npy` and, for scoring, `x_test.npy`, `y_test.npy`;
    or shards `source-*.npz` and `test-*.npz` with x and y and `target-*.npz` with x; or images `source/CLASS/…`,
    `target/…` and `test/CLASS/…`. The same data give the same training, bit for bit, in every layout.

    Everything is read once, so that errors show before training begins. Inputs up to `memory` stay in memory. The
    others are read again on demand: in place, or, if they are compressed or images, from a temporary file without a
    name, which takes as much disk as they have bytes.

    Args:
        path: the file or the folder.
        memory: MiB of inputs to keep in memory. Labels take 8 bytes a sample on top of that, and the order in which
            samples are drawn takes 16.
        on_bad_data: "stop" raises at the first shard or image that cannot be used; "skip" leaves it out and records it
            in the task's `skipped`. A single `.npz` or `.npy` file that is bad always raises.
        follow: called now and then with the number of bytes read so far.

    Returns:
        The task, named by its path.

    Raises:
        DataError: the path holds no data in any of these layouts, or the data cannot be used.
        ImportError: the data are images, and Pillow is not installed.
    """
    name, store, bad = fspath(path), Store(memory << 20, follow), BadData(on_bad_data)
    if not name:  # pathlib would take it for the current directory
        raise DataError("data: got no name; expected an .npz archive or a folder.")
    try:
        is_folder = Path(name).is_dir()
    except (OSError, ValueError):
        is_folder = False  # reading it as a file reports why
    if not is_folder:
        return load_npz(name, store)
    layout = _layout(name)
    if layout == "x_*.npy":
        return load_npy(name, store)
    if layout == "*-*.npz":
        return load_shards(name, store, bad)
    return load_images(name, store, bad)


def _layout(folder: str) -> str:
    exists = {
        "x_*.npy": any(Path(folder).glob("[xy]_*.npy")),
        "*-*.npz": any(any(Path(folder).glob(f"{split}-*.npz")) for split in ("source", "target", "test")),
        "source/": Path(folder, "source").is_dir(),
    }
    present = [layout for layout in _LAYOUTS if exists[layout]]
    if len(present) == 1:
        return present[0]
    if present:
        files = " and ".join(_LAYOUTS[layout] for layout in present)
        raise DataError(f"{folder}: data in more than one layout: {files}; expected one of them.")
    raise DataError(f"{folder}: a folder without data; expected {', or '.join(_LAYOUTS.values())}.")
