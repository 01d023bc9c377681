"""The pictures: drawn for whatever a run can end as, whole or not at all, and the numbers behind them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from matplotlib.figure import Figure

from grl.check.form import Cell
from grl.check.pictures import draw_matrix
from grl.datasets import Task
from grl.experiment import Result, Snapshot
from grl.experiment.config import METHODS, Config
from grl.experiment.demo import figures, largest_gap, loss_gaps
from grl.experiment.snapshot import take_snapshot
from grl.files import WriteError
from grl.pictures import METHOD_TITLES
from grl.report import draw_demo, draw_report
from grl.report.features import embed


def test_every_method_has_a_title_in_the_pictures() -> None:
    assert tuple(METHOD_TITLES) == METHODS


def a_history(steps: int = 30, shift: float = 0.0, adapts: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "step": i + 1,
            "label_loss": 2 / (i + 1) + shift,
            "domain_loss": 0.7 + shift * i if adapts else None,
            "coeff": i / steps,
        }
        for i in range(steps)
    ]


def a_result(
    shape: tuple[int, ...] = (1, 8, 8), classes: int = 3, *, dim: int = 70, samples: int = 60, **given: Any
) -> Result:
    """A result as a run would leave it, of random numbers: no framework and no training needed."""
    generator = np.random.default_rng(0)
    planar = shape == (2,) and classes == 2
    task = Task(
        name="mine/random.npz",
        x_source=generator.uniform(size=(samples, *shape)).astype(np.float32),
        y_source=np.arange(samples) % classes,
        x_target=generator.uniform(size=(samples, *shape)).astype(np.float32),
        x_test=generator.uniform(size=(samples, *shape)).astype(np.float32),
        y_test=np.arange(samples) % classes,
        y_target=None,
        num_classes=classes,
    )
    axis = np.linspace(0, 1, 12)
    snapshot = Snapshot(
        source_features=generator.normal(size=(samples, dim)),
        target_features=generator.normal(1, size=(samples, dim)),
        source_labels=task.y_source,
        target_labels=task.y_test,
        boundary=(axis, axis, generator.uniform(size=(12, 12))) if planar else None,
    )
    config = Config(**{"method": "dann", "steps": 30, **given})
    metrics = {
        "backend": config.backend,
        "method": config.method,
        "target_accuracy": 0.5,
        "history": a_history(adapts=config.method == "dann"),
    }
    return Result(config, task, metrics, {}, snapshot, snapshot)


def is_a_picture(path: Path) -> bool:
    data = path.read_bytes()
    return data.startswith(b"\x89PNG\r\n") and b"IEND" in data[-12:] and len(data) > 20_000


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(a_result(), id="images"),
        pytest.param(a_result((5,), classes=40, dim=5), id="vectors, more classes than colours"),
        pytest.param(a_result((2,), classes=2, dim=15), id="points in the plane"),
        pytest.param(a_result((3,), dim=1, samples=1), id="one sample, one feature"),
        pytest.param(a_result(method="source-only"), id="no adaptation"),
    ],
)
def test_a_report_is_drawn_for_every_kind_of_data(result: Result, tmp_path: Path):
    draw_report(result, tmp_path / "report.png")
    assert is_a_picture(tmp_path / "report.png")
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_a_report_in_the_plane_sets_the_run_without_adaptation_beside_it(tmp_path: Path):
    result = a_result((2,), classes=2, dim=15)
    draw_report(result, tmp_path / "one.png")
    draw_report(result, tmp_path / "two.png", replace(result, config=Config(method="source-only", steps=30)))
    heights = [int.from_bytes((tmp_path / name).read_bytes()[20:24], "big") for name in ("one.png", "two.png")]
    assert heights[0] < heights[1]  # a row more


@pytest.mark.parametrize("shape", [(1, 8, 8), (2,)])
def test_a_report_of_a_run_that_diverged_is_drawn(shape: tuple[int, ...], tmp_path: Path):
    result = a_result(shape, classes=2)
    lost = replace(result.after, target_features=np.full((60, 70), np.nan))
    if lost.boundary is not None:
        lost = replace(lost, boundary=(*lost.boundary[:2], np.full((12, 12), np.nan)))
    history = [{**record, "label_loss": None, "domain_loss": None} for record in result.metrics["history"]]
    draw_report(replace(result, after=lost, metrics={**result.metrics, "history": history}), tmp_path / "report.png")
    assert is_a_picture(tmp_path / "report.png")


def test_without_target_labels_the_target_is_grey(tmp_path: Path):
    result = a_result()
    draw_report(replace(result, after=replace(result.after, target_labels=None)), tmp_path / "report.png")
    assert is_a_picture(tmp_path / "report.png")


# A formula to matplotlib, but a wrong one; a byte that is no text; letters that the font lacks.
@pytest.mark.parametrize("name", ["price$_$.npz", "Preise\udce4.npz", "价格.npz"])
def test_a_name_is_drawn_as_it_is(name: str, tmp_path: Path):
    result = a_result((3,), dim=3)
    draw_report(replace(result, task=replace(result.task, name=name)), tmp_path / "report.png")
    assert is_a_picture(tmp_path / "report.png")


def test_the_name_of_a_form_is_drawn_as_it_is(tmp_path: Path):
    draw_matrix([Cell("torch", "Layer$_$", "eager", "ok", "")], {"torch": "2"}, tmp_path / "check.png")
    assert is_a_picture(tmp_path / "check.png")


def a_parity_report(name: str) -> Any:
    """What is drawn of a `ParityReport` of one row: its own module imports both frameworks."""
    numbers = dict.fromkeys(("absolute", "relative", "ulp", "rounding", "real", "scale"), 1.0)
    row = SimpleNamespace(kind="activation", key=(name, 0), where=name, agrees=False, **numbers)
    return SimpleNamespace(rows=(row,), first_divergence=row)


def test_the_name_of_a_layer_is_drawn_and_said_as_it_is(tmp_path: Path):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=200)
    from grl.port.pictures import draw_parity, table

    draw_parity(a_parity_report("blocks.$_$"), tmp_path / "parity.png")
    assert is_a_picture(tmp_path / "parity.png")
    console.print(table(a_parity_report("blocks.[v2]").rows))
    assert "blocks.[v2]" in console.file.getvalue()


def test_the_table_of_a_run_names_its_data_as_they_are():
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=200)
    pytest.importorskip("typer")
    from grl.cli.summary import summarise

    result = a_result()
    numbers = dict.fromkeys(("source_accuracy", "domain_accuracy", "proxy_a_distance"), 0.5)
    metrics = {**result.metrics, **numbers, "task": "prices[v2].npz", "seed": 0, "steps": 30, "seconds": 1.0}
    console.print(summarise(replace(result, metrics=metrics), None))
    assert "prices[v2].npz: dann in torch, seed 0" in console.file.getvalue()


def test_a_picture_that_fails_midway_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.png"
    path.write_bytes(b"the old picture")

    def full_disk(self: Figure, target: Path, **settings: Any) -> None:
        target.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(WriteError, match=r"report\.png: cannot be written: No space left on device\."):
        draw_report(a_result((3,), dim=3), path)
    assert path.read_bytes() == b"the old picture"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("backends", [("torch", "jax"), ("torch",), ("jax",)])
def test_a_demo_is_drawn_for_one_backend_or_two(backends: tuple[str, ...], tmp_path: Path):
    results = [a_result(dim=5, backend=b, method=m) for m in ("source-only", "dann") for b in backends]
    draw_demo(results, tmp_path / "demo.png")
    assert is_a_picture(tmp_path / "demo.png")


class FirstCoordinate:
    """A model whose odds of class 1 are e to the first coordinate; features are the points."""

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return x, np.stack([np.zeros(len(x)), x[:, 0]], axis=1), x[:, 1]


def points_on_a_line(samples: int) -> Task:
    """From (−1, 0) to (1, 5); the first half of them is of class 0."""
    x = np.linspace((-1, 0), (1, 5), samples, dtype=np.float32)
    y = np.arange(samples) * 2 // samples
    return Task("line", x, y, x, 2 * x, 1 - y, None, 2)


def test_the_boundary_is_the_probability_of_class_1_with_the_first_axis_across():
    across, up, odds = take_snapshot(FirstCoordinate(), replace(points_on_a_line(9), x_test=None, y_test=None)).boundary
    assert (across[0], across[-1], up[0], up[-1]) == pytest.approx((-1.2, 1.2, -0.5, 5.5))  # a tenth beyond the points
    np.testing.assert_allclose(odds, np.broadcast_to(1 / (1 + np.exp(-across)), (len(up), len(across))), rtol=1e-5)
    assert (odds[0, 0], odds[0, -1]) == pytest.approx((0.23, 0.77), abs=0.01)


def test_features_are_of_evenly_spaced_samples_with_their_labels():
    task = points_on_a_line(1001)
    snapshot = take_snapshot(FirstCoordinate(), task, largest=11)
    np.testing.assert_array_equal(snapshot.source_features, task.x_source[::100])
    np.testing.assert_array_equal(snapshot.source_labels, task.y_source[::100])
    np.testing.assert_array_equal(snapshot.target_features, task.x_test[::100])
    np.testing.assert_array_equal(snapshot.target_labels, task.y_test[::100])
    without = take_snapshot(FirstCoordinate(), replace(task, x_test=None, y_test=None), largest=11)
    np.testing.assert_array_equal(without.target_features, task.x_target[::100])
    assert without.target_labels is None


@pytest.mark.parametrize(
    ("dim", "samples", "name"),
    [(2, 9, "as they are"), (1, 9, "as they are"), (20, 9, "PCA"), (70, 30, "PCA"), (70, 60, "t-SNE")],
)
def test_features_come_into_two_dimensions(dim: int, samples: int, name: str):
    snapshot = a_result(dim=dim, samples=samples).after
    embedding, again = embed(snapshot), embed(snapshot)
    assert embedding is not None
    assert again is not None
    assert embedding.name == name
    assert embedding.source.shape == embedding.target.shape == (samples, 2)
    np.testing.assert_array_equal(embedding.source, again.source)  # the same run, the same picture


def test_principal_components_keep_what_varies():
    """Two domains 10 apart along one of 20 axes stay 10 apart."""
    generator = np.random.default_rng(0)
    source = 0.1 * generator.normal(size=(50, 20))
    target = 0.1 * generator.normal(size=(50, 20)) + 10 * np.eye(20)[7]
    embedding = embed(Snapshot(source, target, np.zeros(50, int), None, None))
    assert embedding is not None
    assert np.linalg.norm(embedding.source.mean(0) - embedding.target.mean(0)) == pytest.approx(10, abs=0.2)


def test_features_that_are_all_the_same_are_drawn_in_one_place():
    embedding = embed(Snapshot(np.ones((60, 70)), np.ones((60, 70)), np.zeros(60, int), None, None))
    assert embedding is not None
    assert np.isfinite(embedding.source).all()


def test_features_that_are_not_finite_have_no_embedding():
    assert embed(Snapshot(np.full((9, 5), np.inf), np.zeros((9, 5)), np.zeros(9, int), None, None)) is None


def two_backends(shift: float) -> list[Result]:
    torch, jax = a_result(dim=3, backend="torch"), a_result(dim=3, backend="jax")
    return [torch, replace(jax, metrics={**jax.metrics, "history": a_history(shift=shift)})]


def test_the_gap_is_the_larger_of_both_losses_at_each_step():
    gaps = loss_gaps(two_backends(0.5))
    assert gaps.keys() == {"dann"}
    assert gaps["dann"] == pytest.approx({i + 1: max(0.5, 0.5 * i) for i in range(30)})
    assert largest_gap(two_backends(0.5)) == pytest.approx(14.5)
    assert largest_gap(two_backends(0.5), steps=10) == pytest.approx(4.5)


def test_one_backend_has_no_gap():
    assert loss_gaps(two_backends(0.5)[:1]) == {}
    assert largest_gap(two_backends(0.5)[:1]) is None


def test_steps_without_a_finite_loss_have_no_gap():
    one, other = two_backends(0.5)
    for record in other.metrics["history"][10:]:
        record.update(label_loss=None, domain_loss=None)
    assert list(loss_gaps([one, other])["dann"]) == list(range(1, 11))


def test_figures_are_the_metrics_without_history():
    results = two_backends(0.0)
    assert figures(results) == {
        "runs": [{"backend": backend, "method": "dann", "target_accuracy": 0.5} for backend in ("torch", "jax")],
        "largest_loss_gap": 0.0,
    }
