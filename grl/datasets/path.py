"""The user's own data at a path, whichever of four ways they are laid out in."""

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
    """Return the task in one `.npz` file or in a folder; which layout it is shows from what is in it.

    A folder holds either `x_source.npy`, `y_source.npy`, `x_target.npy` and, to be scored, `x_test.npy`, `y_test.npy`;
    or shards `source-*.npz` and `test-*.npz` with x and y and `target-*.npz` with x; or images `source/CLASS/…`,
    `target/…` and `test/CLASS/…`. The same data give the same training, bit for bit, in all of them.

    Everything is read through once, so that what is wrong shows before anything is trained. Inputs up to `memory` stay
    in memory; the others are read again when they are asked for, from where they are or, if they are compressed or
    images, from a temporary file without a name that takes as much disk as they have bytes.

    Args:
        path: the file or the folder.
        memory: MiB of inputs that stay in memory. Labels (8 bytes a sample) come on top, and so does the order in which
            samples are drawn (16).
        on_bad_data: "stop" raises at the first shard or image that cannot be used; "skip" leaves it out and notes it in
            the task's `skipped`. A single `.npz` or `.npy` file that is bad always raises.
        follow: called now and then with the number of bytes that have been read through.

    Raises:
        DataError: there is nothing of the kind, or the data cannot be used.
        ImportError: there are images, and Pillow is not installed.
    """
    name, store, bad = fspath(path), Store(memory << 20, follow), BadData(on_bad_data)
    if not name:  # which pathlib takes for the current directory
        raise DataError("data: got no name; expected an .npz archive or a folder.")
    try:
        is_folder = Path(name).is_dir()
    except (OSError, ValueError):
        is_folder = False  # the reader of a file says why it cannot be one
    if not is_folder:
        return load_npz(name, store)
    layout = _layout(name)
    if layout == "x_*.npy":
        return load_npy(name, store)
    if layout == "*-*.npz":
        return load_shards(name, store, bad)
    return load_images(name, store, bad)


def _layout(folder: str) -> str:
    seen = {
        "x_*.npy": any(Path(folder).glob("[xy]_*.npy")),
        "*-*.npz": any(any(Path(folder).glob(f"{split}-*.npz")) for split in ("source", "target", "test")),
        "source/": Path(folder, "source").is_dir(),
    }
    present = [layout for layout, is_there in seen.items() if is_there]
    if len(present) == 1:
        return present[0]
    if present:
        found = " and ".join(_LAYOUTS[layout] for layout in present)
        raise DataError(f"{folder}: data in more than one layout: {found}; expected one of them.")
    raise DataError(f"{folder}: a folder without data; expected {', or '.join(_LAYOUTS.values())}.")
