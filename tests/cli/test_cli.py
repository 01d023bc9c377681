"""`grl train` and `grl demo`: what they write, what they print, and how they refuse."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from rich.console import Console

from grl.cli import main
from grl.cli.announcement import describe_resumption
from grl.cli.progress import Follower
from grl.cli.request import request_resumed
from grl.experiment import (
    FaultError,
    Processes,
    ProcessLostError,
    Result,
    StoppedError,
    Update,
    build_trainer,
    load_data,
    load_weights,
    train,
    trainers,
)
from grl.experiment.checkpoint import Checkpoint, Done, save_checkpoint
from grl.experiment.config import Config, ConfigError
from grl.experiment.faults import Fault
from grl.experiment.log import Log
from grl.experiment.processes import ALONE
from grl.experiment.scores import score
from tests.support.installed import INSTALLED, any_backend, both_backends, each_backend

pytestmark = pytest.mark.trains

FILES = {"config.json", "metrics.json", "metrics.jsonl", "model.safetensors", "report.png"}


class Output(NamedTuple):
    status: int
    out: str
    err: str


def grl(*words: Any) -> Output:
    """Run a command in this process: what a shell would see, without seconds of imports for each."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(word) for word in words])
    return Output(status, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Output]]:
    """A finished run of each backend on moons, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["--task", "moons", "--method", "dann", "--steps", "40", "--log-every", "15", "--seed", "3"]
    return {b: (folder / b, grl("train", "--backend", b, *words, "--out", folder / b)) for b in INSTALLED}


@each_backend
def test_a_run_writes_its_five_files_and_nothing_else(backend: str, runs: dict[str, tuple[Path, Output]]):
    folder, output = runs[backend]
    assert (output.status, output.err) == (0, "")
    assert {path.name for path in folder.iterdir()} == FILES
    assert all(str(folder / name) in output.out for name in FILES)
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG\r\n")


@each_backend
def test_metrics_have_exactly_the_promised_keys(backend: str, runs: dict[str, tuple[Path, Output]]):
    metrics = json.loads((runs[backend][0] / "metrics.json").read_text())
    assert set(metrics) == {
        *("backend", "versions", "device", "devices", "task", "method", "seed", "steps", "seconds", "source_accuracy"),
        *("target_accuracy", "domain_accuracy", "proxy_a_distance", "history", "skipped_data"),
    }
    assert [metrics[name] for name in ("backend", "task", "method", "seed", "steps")] == [
        backend,
        "moons",
        "dann",
        3,
        40,
    ]
    assert backend in metrics["versions"]
    assert [record["step"] for record in metrics["history"]] == [15, 30, 40]
    assert all(set(record) == {"step", "label_loss", "domain_loss", "coeff"} for record in metrics["history"])


@each_backend
def test_config_json_is_the_settings_of_the_run(backend: str, runs: dict[str, tuple[Path, Output]]):
    settings = json.loads((runs[backend][0] / "config.json").read_text())
    given = {"backend": backend, "method": "dann", "steps": 40, "seed": 3, "log_every": 15}
    assert Config(**settings) == Config.recommended("moons", **given)


@both_backends
def test_the_same_seed_is_one_experiment_in_both_backends(runs: dict[str, tuple[Path, Output]]):
    histories = [json.loads((folder / "metrics.json").read_text())["history"] for folder, _ in runs.values()]
    for one, other in zip(*histories, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@both_backends
@pytest.mark.parametrize(("writes", "loads"), [("torch", "jax"), ("jax", "torch")])
def test_what_one_backend_writes_the_other_loads_and_predicts_the_same(
    writes: str, loads: str, runs: dict[str, tuple[Path, Output]]
):
    start = str(runs[writes][0] / "model.safetensors")
    outputs = []
    for backend in (writes, loads):
        config = Config.recommended("moons", backend=backend, start=start)
        task = load_data(config)
        outputs.append(build_trainer(task, config).predict(task.x_test))
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@both_backends
def test_convolutions_too_are_stored_in_one_format(here: Path):
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(12, 3, 12, 12)).astype(np.float32)
    np.savez("images.npz", x_source=x, y_source=np.arange(12) % 3, x_target=x)
    assert grl("train", "--backend", "jax", "--data", "images.npz", "--steps", 2, "--out", "run").status == 0
    written = load_weights("run/model.safetensors")
    predictions = []
    for backend in ("torch", "jax"):
        config = Config.recommended("data", backend=backend, data="images.npz", start="run/model.safetensors")
        trainer = build_trainer(load_data(config), config)
        read = trainer.weights()
        assert read.keys() == written.keys()
        assert all(np.array_equal(read[name], written[name]) for name in written)
        predictions.append(trainer.predict(x)[1])
    np.testing.assert_allclose(*predictions, rtol=1e-4, atol=1e-5)


@each_backend
def test_init_goes_on_from_a_run_of_either_backend(backend: str, runs: dict[str, tuple[Path, Output]], here: Path):
    for folder, _ in runs.values():
        words = ["--init", folder / "model.safetensors", "--task", "moons", "--steps", 1, "--method", "source-only"]
        output = grl("train", "--backend", backend, *words, "--out", "again")
        assert output.status == 0, output.err
        trained = json.loads(Path("again/metrics.json").read_text())["history"][-1]["label_loss"]
        fresh = json.loads((folder / "metrics.json").read_text())["history"][-1]["label_loss"]
        assert trained == pytest.approx(fresh, abs=0.15)


@each_backend
def test_what_is_no_terminal_gets_plain_lines_now_and_then(backend: str, runs: dict[str, tuple[Path, Output]]):
    out = runs[backend][1].out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out), "control characters"
    lines = [line for line in out.splitlines() if line.startswith(f"dann, {backend}: step")]
    assert 2 <= len(lines) <= 12
    assert re.fullmatch(
        rf"dann, {backend}: step 10/40  label loss \d\.\d{{4}}  domain loss \d\.\d{{4}} \(ln 2 = 0\.6931\)"
        r"  λ 0\.\d{3}  accuracy \d\.\d{3}",
        lines[0],
    )
    assert re.search(r"\d steps/s  0:00:0\d left$", lines[-1])


def test_a_terminal_gets_a_bar_and_the_losses_below_it_and_its_cursor_back():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with Follower(Console(file=terminal, force_terminal=True, width=120)) as follower:
        follow = follower.run("dann, torch", steps=20)
        follow(Update(10, 20, 0.5, 0.6, 0.1, 0.75, checkpoint=10))
        follow(Update(20, 20, 0.4, 0.6, 0.2, 0.75, checkpoint=10))
        follower.refresh()
        shown = terminal.getvalue()
    words = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)
    assert re.search(r"dann, torch \W+20/20 ", words)
    assert (
        "label loss 0.4000  domain loss 0.6000 (ln 2 = 0.6931)  λ 0.200  accuracy 0.750  checkpoint at step 10" in words
    )
    assert "\x1b[?25l" in shown
    assert "\x1b[?25h" in terminal.getvalue().removeprefix(shown)


@each_backend
def test_a_run_ends_with_a_table_of_its_scores(backend: str, runs: dict[str, tuple[Path, Output]]):
    folder, output = runs[backend]
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("source accuracy", "target accuracy", "domain accuracy", "proxy A-distance"):
        score = metrics[name.replace(" ", "_").replace("-", "_").lower()]
        assert re.search(rf"{name}\W+{score:.3f}", output.out), name


@any_backend
def test_without_test_labels_and_adaptation_the_scores_are_null(here: Path):
    generator = np.random.default_rng(0)
    np.savez("mine.npz", x_source=generator.normal(size=(9, 4)), y_source=np.arange(9) % 3, x_target=np.zeros((5, 4)))
    output = grl("train", "--backend", INSTALLED[0], "--data", "mine.npz", "--method", "source-only", "--steps", 2)
    assert output.status == 0, output.err
    metrics = json.loads(Path(f"runs/mine-source-only-{INSTALLED[0]}-0/metrics.json").read_text())
    assert metrics["target_accuracy"] is metrics["domain_accuracy"] is metrics["history"][-1]["domain_loss"] is None


@any_backend
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # in what is made of logits of 1e38
def test_a_run_that_diverges_stops_with_status_3_or_skips_and_writes_valid_json(here: Path):
    words = ["train", "--backend", INSTALLED[0], "--task", "moons", "--learning-rate", "1e30", "--steps", "20"]
    output = grl(*words, "--out", "run")
    assert output.status == 3
    assert re.fullmatch(r"grl: step 2: the domain loss is nan; its batch, [^\n]+ are in run: nan-[^\n]+\n", output.err)
    assert {path.name for path in Path("run").iterdir()} == {
        *("metrics.jsonl", "nan-batch.npz", "nan-report.json", "nan-weights.safetensors")
    }
    output = grl(*words, "--on-nan", "skip", "--out", "run")
    assert (output.status, output.err) == (0, "")
    assert "19 of 20 steps were skipped" in output.out
    assert {path.name for path in Path("run").iterdir()} == FILES
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["skipped_steps"] == 19
    assert metrics["history"][-1]["domain_loss"] is None


@any_backend
def test_a_run_goes_on_from_its_checkpoint_by_its_own_settings(here: Path):
    pytest.importorskip("tensorboard")
    words = ["--task", "moons", "--steps", 20, "--checkpoint-every", 8, "--seed", 3, "--tensorboard"]
    output = grl("train", "--backend", INSTALLED[0], *words, "--out", "run")
    assert output.status == 0, output.err
    assert "checkpoint at step 16" in output.out
    events = [path.name for path in Path("run").glob("events.out.tfevents.*")]
    assert {path.name for path in Path("run").iterdir()} == {
        *(*FILES, *events, "checkpoint.json", "checkpoint-20.safetensors")
    }
    before = {name: Path("run", name).read_bytes() for name in ("model.safetensors", "metrics.jsonl", "config.json")}
    output = grl("train", "--resume", "run", "--out", "again")
    assert output.status == 0, output.err
    assert "Going on from run, at step 20 of 20." in output.out
    assert {name: Path("again", name).read_bytes() for name in before} == before


def spy_on_runs(monkeypatch: pytest.MonkeyPatch, at: Callable[[Config], None], **instead: Any) -> None:
    """Call `at` with the settings of each run that `grl train` begins: its own, then the one to compare it with."""

    def run(config: Config, **given: Any) -> Result:
        at(config)
        return train(config, **given | instead)

    monkeypatch.setattr("grl.cli.train.run", run)


@any_backend
def test_the_run_to_compare_with_starts_from_the_same_file_even_if_that_is_replaced(
    runs: dict[str, tuple[Path, Output]], here: Path, monkeypatch: pytest.MonkeyPatch
):
    model = Path("run/model.safetensors")
    model.parent.mkdir()
    model.write_bytes((runs[INSTALLED[0]][0] / model.name).read_bytes())
    words = ["train", "--backend", INSTALLED[0], "--task", "moons", "--steps", 2, "--init", model, "--out", "run"]
    started: list[bytes] = []
    with monkeypatch.context() as patched:
        spy_on_runs(patched, lambda _: started.append(model.read_bytes()))
        output = grl(*words)
    assert output.status == 0, output.err
    assert re.search(r"^source-only, to compare: step 2/2 ", output.out, re.MULTILINE)
    assert re.search(r"target accuracy\W+\d\.\d{3}\W+source-only: \d\.\d{3}", output.out)
    assert len(started) == 2
    assert started[0] == started[1] != model.read_bytes()

    def interrupt(config: Config) -> None:
        if config.method == "source-only":
            raise KeyboardInterrupt

    spy_on_runs(monkeypatch, interrupt)
    assert grl(*words[:-1], "kept").status == 130
    assert {path.name for path in Path("kept").iterdir()} == FILES - {"report.png"}, "what is done is not lost"


@any_backend
def test_a_run_goes_on_without_the_file_that_it_has_started_from(runs: dict[str, tuple[Path, Output]], here: Path):
    start = Path("start.safetensors")
    start.write_bytes((runs[INSTALLED[0]][0] / "model.safetensors").read_bytes())
    Path("run").mkdir()
    settings = {"backend": INSTALLED[0], "steps": 20, "checkpoint_every": 20, "start": str(start)}
    expected = train(Config.recommended("moons", **settings), out="run")
    start.unlink()
    output = grl("train", "--resume", "run")
    assert output.status == 0, output.err
    assert "source-only" not in output.out, "it would start from weights that are not there"
    found = load_weights("run/model.safetensors")
    assert all(np.array_equal(array, found[name]) for name, array in expected.weights.items())


def write_checkpoint(folder: str, steps: int = 9) -> None:
    with Log(Path(folder)) as log:
        config = Config.recommended("moons", steps=steps, seed=4)
        versions = {"torch": "1.0", "python": platform.python_version()}
        save_checkpoint(folder, Checkpoint(config, Done(2), {}, versions, {}, ()), log.digest)


def test_a_run_that_goes_on_elsewhere_spares_an_unfinished_run_there(here: Path):
    for folder in ("mine", "other"):
        Path(folder).mkdir()
        write_checkpoint(folder)
    before = {path: path.read_bytes() for path in Path("other").iterdir()}
    output = grl("train", "--resume", "mine", "--out", "other")
    assert (output.status, output.out) == (2, "")
    assert output.err.startswith("grl: --out: other holds the checkpoint of a run that is not finished, at step 2; ")
    assert {path: path.read_bytes() for path in Path("other").iterdir()} == before


def test_what_is_given_beside_resume_replaces_what_the_checkpoint_says_and_other_versions_are_told(here: Path):
    write_checkpoint(".")
    given = dict.fromkeys(Config.__dataclass_fields__) | {"backend": "jax", "sharding": "fsdp", "on_nan": "skip"}
    request = request_resumed(".", given | {"device": "gpu", "timeout": 5})
    config, checkpoint = request.config, request.checkpoint
    assert checkpoint is not None
    assert config == Config.recommended(
        "moons", steps=9, seed=4, backend="jax", sharding="fsdp", on_nan="skip", device="gpu", timeout=5
    )
    assert describe_resumption(checkpoint, config) == (
        "Going on from ., at step 2 of 9, written by torch: jax rounds differently."
    )
    if "torch" in INSTALLED:
        assert re.fullmatch(
            r"Going on from \., at step 2 of 9, written with torch 1\.0 \(now \d[^)]*\): the last bits may differ\.",
            describe_resumption(checkpoint, checkpoint.config),
        )


@any_backend
def test_sigterm_after_the_last_step_ends_with_143_once_all_is_written(here: Path, monkeypatch: pytest.MonkeyPatch):
    def scored(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return score(*given)

    monkeypatch.setattr("grl.experiment.run.score", scored)
    words = ["--task", "moons", "--steps", 2, "--method", "source-only", "--out", "run"]
    output = grl("train", "--backend", INSTALLED[0], *words)
    assert (output.status, output.err) == (143, "")
    assert {path.name for path in Path("run").iterdir()} == FILES


# As one of several processes, which the environment and the exchange of texts say, and nothing else.


def as_one_of_two(
    index: int, monkeypatch: pytest.MonkeyPatch, other: Callable[[str], str] = lambda text: text
) -> list[str]:
    """Let this process be one of two; return the list of what it says to the other."""
    said: list[str] = []

    def exchange(text: str) -> list[str]:
        said.append(text)
        return [text, other(text)] if index == 0 else [other(text), text]

    @contextmanager
    def join(_: Config) -> Iterator[Processes]:
        yield Processes(index, 2, exchange)

    monkeypatch.setenv("RANK", str(index))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("grl.cli.train.join", join)
    monkeypatch.setattr(os, "_exit", lambda _: None)  # how `main` ends a process of several
    return said


FAULT = Fault(3, (np.zeros(1),) * 3, 0.5, (0.1, 0.1), np.nan, np.nan, {}, None)


@pytest.mark.parametrize("index", [0, 1])
def test_what_all_processes_refuse_the_first_prints_and_what_one_refuses_that_one(
    index: int, here: Path, monkeypatch: pytest.MonkeyPatch
):
    here.joinpath("run").mkdir()
    as_one_of_two(index, monkeypatch, lambda _: "no such file.")
    sentence = f"grl: no such file (in process {1 - index} of 2).\n"
    words = ["train", "--task", "moons", "--method", "source-only", "--out", "run"]
    assert grl(*words) == (2, "", sentence if index == 0 else "")

    place = f"grl: process {index} of 2: "
    assert grl("train", "--steps", "0") == (
        2,
        "",
        f"{place}--steps: got 0; expected an integer from 1 to 1000000000.\n",
    )
    output = grl("train", "--resume", "absent")
    assert output == (2, "", f"{place}absent/checkpoint.json: cannot be read: No such file or directory.\n")
    as_one_of_two(index, monkeypatch)

    def ended(error: Exception) -> Output:
        def load_data(*_: Any) -> None:
            raise error

        monkeypatch.setattr("grl.cli.train.load_data", load_data)
        return grl(*words)

    assert ended(MemoryError()).err.startswith(f"{place}not enough memory; ")
    lost = ProcessLostError(f"process {index} of 2: another one has ended")
    assert ended(lost) == (1, "", f"{place}another one has ended\n"), "which one it is is said once"
    for error, status in ((StoppedError(1, 2, None), 143), (FaultError(FAULT), 3)):
        assert ended(error) == (status, "", f"grl: {error}\n" if index == 0 else "")


@any_backend
def test_a_device_that_is_not_there_is_refused_by_several_in_the_words_of_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["train", "--backend", INSTALLED[0], "--task", "moons", "--device", "abacus", "--out", "run"]
    alone = grl(*words)
    said: list[str] = as_one_of_two(0, monkeypatch, lambda text: text if len(said) > 1 else "")
    assert grl(*words) == alone
    assert said[0] == "", "what the first does alone it does not refuse alone"
    assert alone.err.startswith("grl: --device: got 'abacus'; expected one that ")
    assert not Path("run").exists()


@any_backend
def test_a_disk_that_is_full_in_the_end_is_told_to_the_other_processes(here: Path, monkeypatch: pytest.MonkeyPatch):
    def save(*_: Any) -> None:
        raise ConfigError("run: cannot be written: No space left on device.")

    said = as_one_of_two(0, monkeypatch)
    spy_on_runs(monkeypatch, lambda _: None, processes=ALONE)
    monkeypatch.setattr("grl.cli.train.save", save)
    words = ["--task", "moons", "--steps", 2, "--method", "source-only", "--out", "run"]
    output = grl("train", "--backend", INSTALLED[0], *words)
    assert (output.status, output.err) == (2, "grl: run: cannot be written: No space left on device.\n")
    assert said == ["", "run: cannot be written: No space left on device."]


# How they refuse.


def write_bad_files() -> None:
    Path("a_file").write_text("here")
    Path("truncated.npz").write_bytes(b"PK\x03\x04")
    Path("broken").mkdir()
    Path("broken/checkpoint.json").write_text("{")
    np.savez("no_labels.npz", x_source=np.zeros((4, 2)), x_target=np.zeros((4, 2)))
    np.savez("nan.npz", x_source=np.full((4, 2), np.nan), y_source=np.arange(4) % 2, x_target=np.zeros((4, 2)))
    np.savez("good.npz", x_source=np.zeros((4, 2)), y_source=np.arange(4) % 2, x_target=np.zeros((4, 2)))
    Path("garbage.safetensors").write_bytes(b"no safetensors at all")
    from safetensors.numpy import save_file

    save_file({"another.network": np.zeros(3, np.float32)}, "foreign.safetensors")


REFUSALS = {
    "train --task ''": "unknown task ''",
    "train --task mnist": "unknown task 'mnist'; the tasks are mnist-mnistm, digits-mnist, mnist-digits, moons",
    "train --backend tensorflow": "--backend: got 'tensorflow'; expected 'torch' or 'jax'",
    "train --method cdan": "--method: got 'cdan'; expected 'source-only' or 'dann' or 'target'",
    "train --schedule cosine": r"--schedule: got 'cosine'; expected dann\[:GAMMA\], linear",
    "train --optimizer lion": "--optimizer: got 'lion'; expected 'adam' or 'sgd'",
    "train --dtype float16": "--dtype: got 'float16'; expected 'float32' or 'float64'",
    "train --steps 0": "--steps: got 0; expected an integer from 1",
    "train --steps 9999999999999999999": "--steps: got 9999999999999999999; expected an integer from 1 to 1000",
    "train --steps many": "--steps: got 'many'; expected an integer",
    "train --batch-size 0": "--batch-size: got 0; expected an integer from 1",
    "train --batch-size 99999999999": "--batch-size: got 99999999999; expected an integer from 1 to 1000000",
    "train --data-memory -1": "--data-memory: got -1; expected an integer from 0",
    "train --on-bad-data pass": "--on-bad-data: got 'pass'; expected 'stop' or 'skip'",
    "train --log-every 0": "--log-every: got 0",
    "train --seed -1": "--seed: got -1; expected an integer from 0",
    "train --learning-rate 0": "--learning-rate: got 0.0; expected a finite number above 0 and up to 1e30",
    "train --learning-rate fast": "--learning-rate: got 'fast'; expected a number",
    "train --classifier-learning-rate nan": "--classifier-learning-rate: got nan",
    "train --clip-norm 0": "--clip-norm: got 0.0",
    "train --momentum 1": "--momentum: got 1.0",
    "train --decay -1": "--decay: got -1.0",
    "train --task moons --data good.npz": "--task and --data: got both; expected one of them",
    "train --data ''": "data: got no name; expected an .npz archive or a folder",
    "train --task moons --init ''": "weights: got no name; expected a model.safetensors",
    "train --data absent.npz": "absent.npz: cannot be read: No such file or directory",
    "train --data truncated.npz": "truncated.npz: truncated or no .npz archive",
    "train --data no_labels.npz": "no_labels.npz: the key 'y_source' is missing",
    "train --data nan.npz": "nan.npz: 'x_source' holds NaN",
    "train --data good.npz --method target": "good.npz: the method 'target' trains on labelled target data",
    "train --checkpoint-every 0": "--checkpoint-every: got 0; expected an integer from 1",
    "train --sharding fspd": "--sharding: got 'fspd'; expected 'replicated' or 'fsdp'",
    "train --timeout 0": "--timeout: got 0; expected an integer from 1",
    "train --on-nan hope": "--on-nan: got 'hope'; expected 'stop' or 'skip'",
    "train --resume absent": "absent/checkpoint.json: cannot be read: No such file or directory",
    "train --resume a_file": "a_file/checkpoint.json: cannot be read: Not a directory",
    "train --resume broken": "broken/checkpoint.json: truncated or no JSON",
    "train --resume broken --steps 5": "--resume: got --steps beside it; expected --backend, --device, --sharding",
    "train --resume broken --init x": "--resume: got --init beside it",
    "train --task moons --init absent.safetensors": "absent.safetensors: cannot be read",
    "train --task moons --init garbage.safetensors": "garbage.safetensors: truncated or no safetensors file",
    "train --task moons --init foreign.safetensors": "foreign.safetensors: weights of another network",
    "train --task moons --out a_file": "--out: a_file is a file; expected a directory",
    "train --task moons --out a_file/deeper": "--out: a_file/deeper: cannot be written: Not a directory",
    "train --task moons --out ''": "--out: got no name; expected a directory",
    f"train --task moons --out {'x' * 300}": "--out: x+: cannot be written: File name too long",
    f"check --backend torch --json {'x' * 300}": "--json: got 'x+'; expected a file in a folder",
    f"check --backend torch --png {'x/' * 3000}x": "--png: got '[x/]+'; expected a file in a folder",
    "train --task moons --device abacus": "--device: got 'abacus'; expected one that .* finds here: cpu",
    "demo --steps 0": "--steps: got 0",
    "demo --steps 1.5": "--steps: got '1.5'; expected an integer",
    "demo --seed -1": "--seed: got -1",
    "demo --out a_file": "--out: a_file is a file",
    "demo --task mnist": "unknown task 'mnist'",
    "trian": r"No such command 'trian'.*[Tt]ry: grl --help",
    "train --stesp 3": "No such option: --stesp",
    "train moons": r"unexpected extra argument.*\(moons\); try: grl train --help",
}


@any_backend
@pytest.mark.parametrize("command", REFUSALS)
def test_bad_use_gets_one_sentence_and_leaves_nothing_behind(command: str, here: Path):
    write_bad_files()
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    words = shlex.split(command)
    if words[0] == "train" and "--backend" not in words:
        words += ["--backend", INSTALLED[0]]
    output = grl(*words)
    assert output.status == 2
    assert output.out == ""
    assert re.fullmatch(r"grl: [^\n]+\n", output.err), "one line"
    assert re.search(REFUSALS[command], output.err), output.err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@each_backend
def test_a_backend_that_is_not_installed_is_named_with_its_extra(
    backend: str, here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, backend, None)  # how Python itself marks what cannot be imported
    monkeypatch.delitem(sys.modules, f"grl.experiment.trainers.{backend}_trainer", raising=False)
    monkeypatch.delattr(trainers, f"{backend}_trainer", raising=False)  # what an earlier import has left
    output = grl("train", "--task", "moons", "--backend", backend)
    assert output.status == 2
    assert re.fullmatch(rf'grl: [^\n]*{backend}[^\n]* pip install "grl\[{backend}\]"\n', output.err)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("RESOURCE_EXHAUSTED: 9"),
    ],
)
def test_too_little_memory_is_one_sentence(error: Exception, here: Path, monkeypatch: pytest.MonkeyPatch):
    def load_data(*_: Any) -> None:
        raise error

    monkeypatch.setattr("grl.cli.train.load_data", load_data)
    assert grl("train", "--task", "moons") == (
        2,
        "",
        "grl: not enough memory; grl train needs less with a smaller --batch-size.\n",
    )
    monkeypatch.setattr(error, "args", ("a mistake of ours",))
    if not isinstance(error, MemoryError):
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            grl("train", "--task", "moons")


def test_the_command_line_without_its_extra_names_it(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    output = grl("train")
    assert output == (2, "", 'grl: the command line needs typer, rich: pip install "grl[cli]"\n')


@pytest.mark.parametrize("words", ["train --task moons", "demo --task moons", "train --resume x"])
def test_a_command_that_trains_names_the_extra_that_it_lacks(words: str, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    command = words.split()[0]
    sentence = f'grl: grl {command} needs scikit-learn, matplotlib: pip install "grl[train]"\n'
    assert grl(*words.split()) == (2, "", sentence)
    assert list(here.iterdir()) == []


WITHOUT_TRAINING = """
import sys
sys.modules.update(dict.fromkeys(("sklearn", "mlxtend", "matplotlib", "safetensors", "PIL")))
from grl.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "status", "pattern"),
    [
        ("--help", 0, "port-check"),
        ("--version", 0, r"^grl \d"),
        ("train --help", 0, "--schedule"),
        ("demo --help", 0, "--steps"),
        ("check --help", 0, "--target"),
        ("port-check --help", 0, "--inputs"),
        ("check --only eager", 0, "gradient_reversal"),
        ("check --only eager --png cells.png", 2, r'^grl: this command needs matplotlib: pip install "grl\[train\]"$'),
        ("train --task moons", 2, r'^grl: grl train needs scikit-learn, [^\n]+: pip install "grl\[train\]"$'),
    ],
)
def test_typer_and_rich_are_enough_for_what_does_not_train(words: str, status: int, pattern: str, here: Path):
    command = [sys.executable, "-c", WITHOUT_TRAINING, *words.split()]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert (done.returncode, re.findall("Traceback", done.stderr)) == (status, []), done.stderr
    assert re.search(pattern, done.stdout + done.stderr, re.MULTILINE)


def test_bad_use_ends_a_process_with_status_2_and_no_traceback(here: Path):
    command = [sys.executable, "-m", "grl", "train", "--task", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"grl: unknown task 'nothing'; [^\n]+\n", done.stderr)


@any_backend
def test_ctrl_c_ends_with_status_130_a_sentence_and_whole_lines(here: Path):
    words = ["train", "--backend", INSTALLED[0], "--task", "moons", "--steps", "1000000", "--out", "runs/long"]
    command = [sys.executable, "-m", "grl", *words]
    # A shell starts background jobs with SIGINT ignored, and children inherit that; a handler they do not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Reversal at the schedule's last λ")
            assert "step 10/1000000" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == "grl: interrupted; no file was left half written.\n"
    assert [path.name for path in Path("runs/long").iterdir()] == ["metrics.jsonl"]
    assert all(json.loads(line)["step"] % 50 == 0 for line in Path("runs/long/metrics.jsonl").read_text().splitlines())


@any_backend
def test_a_picture_that_cannot_be_written_leaves_no_part_of_it(here: Path):
    Path("run/report.png").mkdir(parents=True)
    output = grl("train", "--backend", INSTALLED[0], "--task", "moons", "--steps", 2, "--out", "run")
    assert output.status == 2
    assert re.fullmatch(r"grl: run/report.png: cannot be written: [^\n]+\n", output.err)
    assert {path.name for path in Path("run").iterdir()} == FILES


# The demo, on points in the plane: the same code as on images, in seconds.


def test_demo_compares_methods_and_backends(here: Path):
    if not INSTALLED:
        pytest.skip("needs a framework")
    output = grl("demo", "--task", "moons", "--steps", 20, "--seed", 1)
    assert (output.status, output.err) == (0, "")
    assert {path.name for path in Path("runs/demo").iterdir()} == {"demo.json", "demo.png"}
    figures = json.loads(Path("runs/demo/demo.json").read_text())
    assert set(figures) == {"runs", "largest_loss_gap"}
    assert {(run["method"], run["backend"]) for run in figures["runs"]} == {
        (method, backend) for method in ("source-only", "dann") for backend in INSTALLED
    }
    for run in figures["runs"]:
        assert "history" not in run
        assert {"target_accuracy", "seconds", "versions", "proxy_a_distance"} < set(run)
        assert re.search(rf"{run['method']}\W+{run['backend']}\W+{run['target_accuracy']:.3f}", output.out)
    if len(INSTALLED) == 2:
        assert 0 < figures["largest_loss_gap"] < 1e-4
        assert f"Largest gap between the backends' losses: {figures['largest_loss_gap']:.2g}" in output.out


@both_backends
@pytest.mark.parametrize(("absent", "present"), [("jax", "torch"), ("flax", "torch"), ("torch", "jax")])
def test_demo_with_one_framework_runs_that_one_and_says_so(
    absent: str, present: str, here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, absent, None)
    output = grl("demo", "--task", "moons", "--steps", 2, "--out", "demo")
    assert output.status == 0, output.err
    assert f"Only one framework is installed, {present}" in output.out
    figures = json.loads(Path("demo/demo.json").read_text())
    assert [run["backend"] for run in figures["runs"]] == [present, present]
    assert figures["largest_loss_gap"] is None


def test_demo_without_a_framework_names_the_extra(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "jax", None)
    assert grl("demo") == (2, "", 'grl: no framework is installed: pip install "grl[all]"\n')


# What they say about themselves.


def test_help_names_every_setting_with_its_default():
    output = grl("train", "--help")
    assert output.status == 0
    only_in_python = {"channels", "hidden", "label_hidden", "domain_hidden"}  # the network's sizes
    options = {setting.flag(name) for name, setting in Config.settings().items() if name not in only_in_python}
    options |= {"--out", "--resume", "--help"}
    missing = [option for option in sorted(options) if not re.search(rf"{option}\s", output.out)]
    assert not missing
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", output.out).split())
    assert words.count("[default: ") == len(options) - 1  # all but --help
    for panel in ("What to train", "How to train", "Where to compute", "What to write", "What to do when"):
        assert panel in words


def test_help_of_the_demo_and_of_the_whole():
    assert all(f"--{option}" in grl("demo", "--help").out for option in ("out", "seed", "steps", "task"))
    for words in ([], ["--help"]):
        output = grl(*words)
        assert output.status == 0
        assert re.search(r"train .*demo ", " ".join(output.out.split()))


def test_a_terminal_that_has_no_greek_gets_question_marks():
    written = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(written, "ascii")) as out:
        assert main(["train", "--help"]) == 0
        out.flush()
    assert b"? at progress p." in written.getvalue()


def test_version_names_grl_and_the_frameworks():
    output = grl("--version")
    assert output.status == 0
    assert [line.split()[0] for line in output.out.splitlines()] == ["grl", "torch", "jax", "python"]


def test_help_and_refusals_import_no_framework():
    code = "import sys; from grl.cli import main; main(['train', '--help']); main(['train', '--steps', '0']); "
    code += "sys.exit(', '.join({'torch', 'jax', 'sklearn', 'matplotlib'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
