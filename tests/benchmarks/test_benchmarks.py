"""The benchmarks measure what they say: the statistics, the check of every result, and the command end to end."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.installed import deep, needs_torch

ROOT = Path(__file__).parents[2]
pytest.importorskip("rich")
pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def a_row(form: str, samples: list[float], floor: tuple[str, str] | None = None) -> Any:
    from benchmarks.record import Row

    return Row("op", "torch", form, "ours", "forward", "ns", {"bytes": 256}, samples, floor)


def test_ratios_are_of_the_same_round() -> None:
    from benchmarks.record import relate, summarise

    floor, mine = a_row("floor", [1.0, 10.0, 2.0]), a_row("mine", [2.0, 20.0, 5.0], ("floor", "forward"))
    relate([floor, mine])
    assert mine.ratio == [2.0, 2.0, 2.5]
    found = summarise([1, 2, 3, 4, 5])
    assert (found.q1, found.median, found.q3) == (2, 3, 4)


def test_rounds_are_interleaved_and_a_call_that_raises_has_no_samples() -> None:
    from benchmarks.timing import Call, HostClock, interleave

    seen: list[str] = []
    calls = {name: Call(seen.append, [(name,)], HostClock()) for name in "ab"}
    calls["bad"] = Call(lambda: 1 / 0, [()], HostClock())
    samples, failures = interleave(calls, rounds=(4, 4), repeat=1)
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4}
    assert isinstance(failures["bad"], ZeroDivisionError)
    timed = seen[2:]  # after the calibration; each sample is two calls: a warm one and a timed one
    assert all({timed[i], timed[i + 2]} == {"a", "b"} for i in range(0, len(timed), 4))


def test_what_is_compared_is_timed_one_right_after_the_other() -> None:
    from benchmarks.timing import Call, HostClock, interleave

    seen: list[str] = []
    calls = {name: Call(seen.append, [(name,)], HostClock()) for name in ("a1", "b1", "c1", "a2", "b2", "c2")}
    interleave(calls, rounds=(6, 6), repeat=1, beside=lambda name: name[0])
    timed = seen[6::2]
    pairs = [(timed[i], timed[i + 1]) for i in range(0, len(timed), 2)]
    assert len(pairs) == 18
    assert all(one[0] == other[0] and one != other for one, other in pairs)
    assert len({one for one, _ in pairs}) == 6  # neither of a pair is always the first


@needs_torch
@pytest.mark.parametrize("broken", ["forward", "backward"])
def test_a_form_with_a_wrong_result_is_caught(broken: str) -> None:
    from benchmarks.form import TimedForm, WrongResultError
    from benchmarks.forms_torch import TorchBackend
    from grl.torch_impl import gradient_reversal

    backend = TorchBackend("cpu")
    inputs = backend.inputs(256, "float32", 2)
    layers = {"forward": lambda x, c: gradient_reversal(x, c) + 1e-3, "backward": lambda x, c: gradient_reversal(x, -c)}
    form = TimedForm("broken", "ours", lambda c: (layers[broken], (c,)))
    for measure in ("forward", "backward"):
        (call,) = backend.calls(form, inputs, 0.7, measure)
        if measure == broken:
            with pytest.raises(WrongResultError, match=broken):
                backend.check(form, inputs, 0.7, measure, call)
        else:
            backend.check(form, inputs, 0.7, measure, call)


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.mark.trains
@needs("torch", "sklearn", "mlxtend")
def test_the_command_writes_every_sample_and_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import BENCHMARKS, main
    from benchmarks.record import find, load

    only = [name for name in BENCHMARKS if name not in ("compile", "step")]
    assert main(["--device", "cpu", "--smoke", "--only", *only, "--out", str(tmp_path)]) == 0
    machine, rows = load(tmp_path / "results.json")
    assert machine["device"] == "cpu"
    assert machine["versions"]["torch"]
    assert {row.benchmark for row in rows} == set(only)
    for name in ("op.png", "scale.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    where = {"framework": "torch", "form": "gradient_reversal", "coeff": "number", "bytes": 2**10}
    ours = find(rows, benchmark="op", measure="forward", **where)
    assert len(ours) == 1
    assert len(ours[0].samples) == 2
    assert not [row.form for row in rows if row.kind == "ours" and row.failure], "ours run everywhere"
    text = json.loads((tmp_path / "results.json").read_text())
    assert text["rows"][0].keys() >= {"samples", "summary", "ratio", "failure"}
    printed = capsys.readouterr().out
    assert "the article's, RTX 3090" in printed
    assert [target["name"] for target in text["reach"]]


@pytest.mark.trains
@deep  # a minute of compiling; `make bench`, which CI runs, takes all these ways too
@needs("torch", "jax", "sklearn", "mlxtend")
def test_the_command_times_whole_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import main
    from benchmarks.record import find, load

    assert main(["--device", "cpu", "--smoke", "--only", "step", "--out", str(tmp_path)]) == 0
    _, rows = load(tmp_path / "results.json")
    assert not [row.form for row in find(rows, benchmark="step") if row.failure]
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert "a DANN step on mnist-mnistm: with the layer / with an identity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("framework", "form", "retained", "peak"),
    [
        ("torch", "gradient_reversal", 0, 1),
        ("torch", "GRL", 0, 1),
        ("torch", "identity", 0, 0),
        ("torch", "article Function", 0, 3),  # a copy of x, −g, and −g·λ
        ("torch", "keeps x", 1, 3),
        ("jax", "custom_vjp, jit", 4 / 2**16, 1),
        ("jax", "identity, jit", 0, 1),
        ("jax", "keeps x", 1, 1),
    ],
)
def test_bytes_are_counted(framework: str, form: str, retained: float, peak: float) -> None:
    pytest.importorskip(framework)
    from benchmarks.form import TimedForm
    from benchmarks.forms import backends
    from benchmarks.memory import count

    (backend,) = (found for found in backends("cpu")[0] if found.name == framework)
    forms = {each.name: each for each in backend.forms}
    sine = pytest.importorskip("torch" if framework == "torch" else "jax.numpy").sin
    forms["keeps x"] = TimedForm("sine", "peer", lambda coeff: (sine, ()), "eager" if framework == "torch" else "jit")
    counted = count(backend, forms[form], 2**16)
    assert counted["retained"] == retained * 2**16
    assert counted["peak"] == peak * 2**16


@needs("torch")
def test_graphs_and_kernels_are_counted() -> None:
    import torch

    from grl.check.forms import function_form, our_forms
    from grl.check.torch_programs import count_graphs, count_kernels

    ours = our_forms("torch")[0]
    assert count_graphs(ours, [i / 1000 for i in range(1000)]) == 2
    assert count_kernels(ours) == count_kernels(None)

    def costly(x: torch.Tensor, coeff: float) -> torch.Tensor:
        return ours.reverse(x.flip(0).cumsum(0).diff(dim=0, prepend=torch.zeros_like(x[:1])).flip(0), coeff)

    assert count_kernels(function_form("costly", "torch", costly)) > count_kernels(None)


@needs("jax")
def test_traces_are_counted() -> None:
    from grl.check.forms import our_forms
    from grl.check.jax_programs import count_traces

    for form in our_forms("jax"):
        assert count_traces(form, [i / 1000 for i in range(1, 1000)]) == 1


def rows_of_a_run(scale: float = 1.0, noise: float = 0.01, kind: str = "ours") -> list[Any]:
    from benchmarks.record import Row

    samples = [scale * (1 + noise * i) for i in range(-2, 3)]
    return [Row("op", "torch", "gradient_reversal", kind, "forward", "ns", {"bytes": 256}, samples)]


@pytest.mark.parametrize(
    ("scale", "noise", "status", "said"),
    [
        (1.0, 0.01, 0, "0 of 1 rows moved"),
        (1.3, 0.01, 1, "1 of 1 rows moved by more than the noise, 1 of them"),
        (1.3, 0.5, 0, "0 of 1 rows moved"),  # the quartiles overlap
        (1.05, 0.001, 0, "1 of 1 rows moved by more than the noise, 0 of them"),
        (0.5, 0.01, 0, "1 of 1 rows moved by more than the noise, 0 of them"),
    ],
)
def test_compare_tells_what_moved(
    scale: float, noise: float, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.__main__ import main
    from benchmarks.record import save

    machine = {"date": "2026-01-01", "revision": "abc", "gpu": None, "processor": "a processor"}
    for name, rows in (("a", rows_of_a_run(1.0, noise)), ("b", rows_of_a_run(scale, noise))):
        save(tmp_path / f"{name}.json", machine, rows, [])
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--bound", "1.1"]) == status
    assert said in capsys.readouterr().out.replace("\n", " ")


def test_compare_takes_the_ratio_to_the_floor_where_there_is_one() -> None:
    from benchmarks.compare import changes

    before, after = rows_of_a_run(1.0), rows_of_a_run(2.0)
    before[0].ratio = after[0].ratio = [1.5] * 5  # the machine got slower, the floor with it
    (change,) = changes(before, after)
    assert change.relative
    assert change.is_noise


def test_compare_refuses_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import main

    assert main(["compare", str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks: ")
    assert error.count("\n") == 1


def test_targets_are_judged_by_their_median() -> None:
    from benchmarks.targets import Target, targets

    assert Target("a", [0.9, 1.0, 1.5], 1.0).is_met
    assert "missed" in str(Target("a", [1.1], 1.0))
    assert targets([]) == []
    params = {"bytes": 2**25, "dtype": "float32", "coeff": "number", "clock": "host"}
    mine, theirs = rows_of_a_run(1.0, 0.0), rows_of_a_run(4.0, 0.0)
    for row in (*mine, *theirs):
        row.params, row.measure = params, "both"
    theirs[0].form = "article Function"
    (found,) = targets([*mine, *theirs])
    assert found.values == [0.25] * 5
    assert found.is_met
    theirs[0].form = "GRL"
    assert targets([*mine, *theirs]) == [], "in a round of all forms one per cent is lost"
    for row in (*mine, *theirs):
        row.benchmark = "layer"
    (found,) = targets([*mine, *theirs])
    assert found.values == [4.0] * 5
    assert not found.is_met


def test_a_picture_is_left_out_where_there_is_nothing_to_draw(tmp_path: Path) -> None:
    from benchmarks.draw import draw

    assert draw([], tmp_path) == []


@pytest.mark.trains
@needs("torch", "sklearn", "mlxtend")
def test_a_step_without_the_reversal_is_caught() -> None:
    import numpy as np

    from benchmarks.form import WrongResultError
    from benchmarks.step import _Case, _check

    layer, identity = (_Case("mnist-mnistm", "torch", "eager", name) for name in ("gradient_reversal", "identity"))
    losses = np.array([[1.0, 0.9], [0.7, 0.71]])
    with pytest.raises(WrongResultError, match="nothing was reversed"):
        _check(identity, {layer: losses, identity: losses}, 1e-5)
    with pytest.raises(WrongResultError, match="first step"):
        _check(identity, {layer: losses, identity: losses * 1.1}, 1e-5)
    _check(identity, {layer: losses, identity: losses * [1.0, 1.1]}, 1e-5)


_RESNET_50 = 23_508_032  # parameters without the classifier: He et al. 2016, as torchvision's resnet50 has them


@needs("torch")
def test_the_large_network_is_resnet_50_in_pytorch() -> None:
    import torch

    from benchmarks.resnet_torch import ResNet
    from benchmarks.settings import Settings

    size = Settings("cuda").resnet
    assert size is not None
    with torch.device("meta"):
        network = ResNet(size)
    assert sum(parameter.numel() for parameter in network.parameters()) == _RESNET_50
    assert network(torch.empty(2, 3, size.side, size.side, device="meta")).shape == (2, network.output_dim) == (2, 2048)


@needs("jax", "flax", "optax")
def test_the_large_network_is_resnet_50_in_jax() -> None:
    import jax
    from flax import nnx

    from benchmarks.resnet_jax import ResNet
    from benchmarks.settings import Settings

    size = Settings("cuda").resnet
    assert size is not None
    network = nnx.eval_shape(lambda: ResNet(size, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) == _RESNET_50
    features = nnx.eval_shape(lambda network, x: network(x), network, jax.ShapeDtypeStruct((2, 3, 224, 224), "float32"))
    assert features.shape == (2, network.output_dim) == (2, 2048)


def test_a_file_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    from benchmarks.record import load

    (tmp_path / "other.json").write_text('{"rows": 3}')
    with pytest.raises(ValueError, match="not the results of a benchmark run"):
        load(tmp_path / "other.json")


def test_reach_counts_a_seed_once_both_methods_have_run() -> None:
    from benchmarks.reach import summarise

    def run(method: str, seed: int, accuracy: float) -> dict[str, Any]:
        return {
            "task": "moons", "backend": "jax", "method": method, "seed": seed, "seconds": 2.0,
            "target_accuracy": accuracy,
        }  # fmt: skip

    runs = [run("source-only", 0, 0.5), run("dann", 0, 0.9), run("source-only", 1, 0.6), run("dann", 1, 0.7)]
    (row,) = summarise([*runs, run("source-only", 2, 0.1)])
    assert (row["seeds"], row["source_only"], row["dann"]) == (2, pytest.approx(0.55), pytest.approx(0.8))
    assert (row["mean_gain"], row["smallest_gain"]) == (pytest.approx(0.25), pytest.approx(0.1))


def test_efficiency_is_the_step_alone_by_the_share_of_each_process() -> None:
    from benchmarks.record import Row, relate
    from benchmarks.scale_out import ALONE, EACH, LARGE, SHARED, SMALL, tables

    cost = {"processes": 2, "bytes": 800_000, "messages": 10}
    times = {ALONE: 40e6, SHARED: 25e6, EACH: 50e6, SMALL: 100e3, LARGE: 900e3}
    rows = [
        Row(
            "scale-out",
            "torch",
            form,
            "ours",
            "step",
            "ns",
            cost,
            [ns],
            (ALONE, "step") if form in (SHARED, EACH) else None,
        )
        for form, ns in times.items()
    ]
    relate(rows)
    measured, paper = tables(rows)
    # Alone 40 ms; half of it would be 20, and takes 25; the same for each would be 40, and takes 50.
    assert list(measured.columns[3].cells) == ["1", "0.80", "0.80"]
    # An all-reduce of one number is two hops of 50 µs; 0.8 MB take 0.8 ms more, and are sent once: 1 GB/s.
    assert list(measured.columns[4].cells) == ["", f"{20 / 21.8:.2f}", f"{40 / 41.8:.2f}"]
    assert next(iter(paper.columns[1].cells)) == "as measured here: 8 Gb/s, 50 µs"
    assert next(iter(paper.columns[2].cells)) == f"{40 / (40 + 10 * 0.05 * 6 + 1.75 * 0.8):.2f}"


@pytest.mark.trains
@deep
@needs("torch", "jax", "sklearn", "mlxtend")
def test_scale_out_times_real_processes_and_writes_what_it_has_found(tmp_path: Path) -> None:
    from benchmarks.__main__ import main
    from benchmarks.record import find, load

    assert main(["scale-out", "--device", "cpu", "--processes", "2", "--rounds", "1", "--out", str(tmp_path)]) == 0
    _, rows = load(tmp_path / "scale-out.json")
    assert {row.framework for row in rows} == {"torch", "jax"}
    assert all(len(row.samples) == 1 and row.samples[0] > 0 for row in rows)
    parameters = 4 * (75 * 32 + 32 + 800 * 48 + 48 + 2 * (32 + 48) + 2 * 768 * 100 + 3 * 100 + 100 * 100 + 1010 + 101)
    assert find(rows, framework="torch")[0].params["bytes"] == parameters + 4 * 2 * 4 * (32 + 48)
