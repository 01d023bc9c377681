"""What one process of several knows: which it is, what its part is, and how all refuse as one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grl.datasets import Task
from grl.experiment import join, train
from grl.experiment.backend import build_architecture, import_processes
from grl.experiment.checkpoint import Checkpoint, Done
from grl.experiment.config import Config, ConfigError
from grl.experiment.devices import DeviceError
from grl.experiment.processes import ALONE, Processes, ProcessLostError, RefusedByAllError, check_shares, launched
from grl.experiment.trainer import Prediction
from tests.support.installed import each_backend, needs_flax, needs_torch

pytestmark = pytest.mark.usefixtures("nobody_else")


def test_of_several_processes_each_has_its_part() -> None:
    assert [Processes(index, 4).part(12) for index in range(4)] == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, ("torch", 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (None, 0, 1)),
        ({"JAX_PROCESS_ID": "3", "JAX_NUM_PROCESSES": "4"}, ("jax", 3, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (None, 0, 1)),  # a batch script, before srun
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, ("jax", 2, 4)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "RANK": "5", "WORLD_SIZE": "8"}, ("torch", 5, 8)),
    ],
)
def test_the_launcher_is_known_by_its_variables(
    environment: dict[str, str], expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def test_a_variable_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK in the environment: got 'first'; expected an integer"):
        launched()


def test_one_process_that_refuses_is_a_refusal_of_all() -> None:
    def exchanged(*texts: str) -> Processes:
        return Processes(0, len(texts), exchange=lambda text: [text, *texts[1:]])

    with (
        pytest.raises(ConfigError, match=r"^no such file \(in process 1 of 2\)\.$"),
        exchanged("", "no such file.").agree(),
    ):
        pass
    with pytest.raises(ConfigError, match=r"^no such file\.$"), exchanged("", "no such file.").agree(ConfigError):
        raise ConfigError("no such file.")
    with pytest.raises(ConfigError, match="settings: process 1 of 2 has others than process 0"):
        exchanged("", "seed 2").check_same("settings", "seed 1")


def test_a_batch_is_dealt_out_in_equal_shares_or_refused() -> None:
    check_shares(16, 4, "processes")
    with pytest.raises(ConfigError, match=r"^batch_size: got 15 for 2 devices; expected a multiple of 2\.$"):
        check_shares(15, 2, "devices")


# What has to be the same in all, before the first step: what one says to the others, and what the other has said.


class ReachedError(Exception):
    """All have agreed, and the first step begins."""


Exchange = Callable[[str], list[str]]


def recording(said: list[str]) -> Exchange:
    """The exchange with a process that says the same; what is said is appended."""
    return lambda text: said.append(text) or [text, text]


def saying(said: list[str]) -> Exchange:
    """The exchange with a process that says these, one after the other."""
    others = iter(said)
    return lambda text: [text, next(others)]


def joined(config: Config, exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def of_two(_: Config) -> Iterator[Processes]:
        yield Processes(0, 2, exchange)

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("grl.experiment.joining.import_processes", lambda *_: SimpleNamespace(join=of_two))
    with join(config) as processes:
        assert processes.count == 2


def test_settings_and_the_file_to_start_from_are_the_same_in_all_but_not_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("one", b"weights"), ("same", b"weights"), ("another", b"others")):
        (tmp_path / name).write_bytes(content)
    config, said = Config(data="here.npz", start=str(tmp_path / "one")), list[str]()
    joined(config, recording(said), monkeypatch)
    joined(replace(config, data="there.npz", start=str(tmp_path / "same")), saying(said), monkeypatch)
    for other in ({"seed": 1}, {"start": str(tmp_path / "another")}, {"start": None}):
        with pytest.raises(ConfigError, match=r"^settings: process 1 of 2 has others than process 0; expected one"):
            joined(replace(config, **other), saying(said), monkeypatch)


POINTS = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)
TASK = Task("points", POINTS, np.arange(8) % 2, POINTS, None, None, None, 2)
CONFIG = Config(backend="torch", steps=9, batch_size=4)


def checkpoint(step: int = 2, value: float = 0.0) -> Checkpoint:
    shapes = build_architecture(TASK, CONFIG).shapes()
    state = {f"model/{name}": np.full(shape, value, np.float32) for name, shape in shapes.items()}
    return Checkpoint(CONFIG, Done(step), {}, {}, state, ())


def to_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
    exchange: Exchange,
    resume: Checkpoint | None,
    config: Config = CONFIG,
    task: Task = TASK,
    out: Path | None = None,
) -> None:
    """What one process of two does up to the first step, with a trainer that needs no framework."""

    def predict(x: Any) -> Prediction:
        return Prediction(x, np.zeros((len(x), 2)), np.zeros(len(x)))

    def reached() -> None:
        raise ReachedError

    trainer = SimpleNamespace(predict=predict, state=reached, mark=reached)
    monkeypatch.setattr("grl.experiment.run.build_trainer", lambda *_: trainer)
    train(config, task=task, resume=resume, processes=Processes(0, 2, exchange), out=out)


def test_the_data_and_the_checkpoint_to_go_on_from_are_the_same_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = {"none": None, "one": checkpoint(), "later": checkpoint(step=3), "others": checkpoint(value=1.0)}
    for name, resume in starts.items():
        said: list[str] = []
        with pytest.raises(ReachedError):
            to_the_first_step(monkeypatch, recording(said), resume)
        for other, another in starts.items():
            with pytest.raises((ReachedError, ConfigError)) as ended:
                to_the_first_step(monkeypatch, saying(said), another)
            assert str(ended.value).startswith("weights to go on from: process 1 of 2 has others") == (other != name)
    with pytest.raises(ConfigError, match=r"^data: process 1 of 2 has others than process 0"):
        to_the_first_step(monkeypatch, saying(said), resume, task=replace(TASK, x_target=POINTS + 1))


# What a backend does about the devices, without any.


@needs_torch
def test_torch_processes_talk_over_what_their_device_has_and_wait_for_no_longer_than_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that is not there is no matter of how they talk: `find_device` refuses it, in all."""
    import torch.distributed as dist

    from grl.experiment.trainers.torch_processes import join

    begun: list[Any] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *given, **named: begun.append((*given, named)))
    for name, result in (("get_rank", 1), ("get_world_size", 2), ("destroy_process_group", None)):
        monkeypatch.setattr(dist, name, lambda result=result: result)
    for device, has_cuda, backend in (
        ("cpu", True, "gloo"), ("cuda", False, "gloo"), ("abacus", True, "gloo"),
        ("cuda", True, "cpu:gloo,cuda:nccl"), ("gpu", True, "cpu:gloo,cuda:nccl"),
    ):  # fmt: skip
        with monkeypatch.context() as patched:
            two_gpus(patched, has_cuda)
            with join(Config(device=device, timeout=7)) as processes:
                assert (processes.index, processes.count) == (1, 2)
        assert begun.pop() == (backend, {"timeout": timedelta(seconds=7)}), device


@each_backend
def test_only_a_refusal_of_all_leaves_in_good_order_as_that_waits_for_all(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    left: list[str] = []
    where, begin, leave = {
        "torch": ("torch.distributed", "init_process_group", "destroy_process_group"),
        "jax": ("jax.distributed", "initialize", "shutdown"),
    }[backend]
    monkeypatch.setattr(f"{where}.{begin}", lambda *_, **named: begun.append(named))
    monkeypatch.setattr(f"{where}.{leave}", lambda: left.append("in good order"))
    if backend == "torch":
        monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    join = import_processes(backend).join
    with pytest.raises(RefusedByAllError, match="of all"), join(Config(timeout=7)):
        raise RefusedByAllError("of all")
    assert left == ["in good order"]
    with pytest.raises(ConfigError, match="gloo, of one"), join(Config(timeout=7)):
        raise ConfigError("gloo, of one")
    lost = pytest.raises(ProcessLostError, match=r"did not answer within 7 s \(--timeout\): gloo: reset$")
    with lost, join(Config(timeout=7)):
        raise RuntimeError("gloo: reset\nby a peer")
    assert left == ["in good order"]
    expected = {"timeout": timedelta(seconds=7)} if backend == "torch" else {"initialization_timeout": 7}
    assert expected.items() <= begun[0].items()


def two_gpus(monkeypatch: pytest.MonkeyPatch, present: bool = True) -> None:
    import torch

    found = torch.device("cuda") if present else None
    for name, result in (("current_accelerator", found), ("is_available", present), ("device_count", 2)):
        monkeypatch.setattr(torch.accelerator, name, lambda result=result: result)


@needs_torch
def test_each_torch_process_of_a_machine_takes_an_accelerator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from grl.experiment.trainers.torch_processes import find_device

    two_gpus(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(find_device("cuda", Processes(1, 2))) == str(find_device("gpu", Processes(3, 4))) == "cuda:1"
    assert str(find_device("gpu", ALONE)) == "cuda:0", "what a launcher says is for several"
    assert str(find_device("cuda:1", ALONE)) == "cuda:1"
    assert str(find_device("cpu", Processes(1, 2))) == "cpu"
    with pytest.raises(ConfigError, match=r"^device: got 'cuda:1' for 2 processes; expected the name without a"):
        find_device("cuda:1", Processes(1, 2))
    monkeypatch.setenv("LOCAL_RANK", "2")
    for name, processes in (("cuda", Processes(2, 3)), ("cuda:2", ALONE), ("mps", ALONE), ("abacus", Processes(0, 2))):
        with pytest.raises(DeviceError, match=f"^device: got '{name}'; .* PyTorch finds here: cpu, cuda:0, cuda:1\\.$"):
            find_device(name, processes)


@needs_flax
def test_several_jax_processes_take_no_device_by_its_number() -> None:
    from grl.experiment.trainers.jax_processes import find_devices

    assert find_devices("cpu:0", ALONE)[0].platform == "cpu"
    with pytest.raises(ConfigError, match=r"^device: got 'cpu:0' for 2 processes; expected the name without a"):
        find_devices("cpu:0", Processes(0, 2))


# What the first one alone lacks.


def test_without_tensorboard_all_refuse_before_anything_of_the_run_before_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith(("tensorboard.", "grl.experiment.events"))]:
        monkeypatch.delitem(sys.modules, name)
    names = ("metrics.jsonl", "checkpoint.json", "nan-report.json")
    for name in names:
        (tmp_path / name).write_text(name)
    config = replace(CONFIG, tensorboard=True)
    with pytest.raises(RefusedByAllError, match=r'pip install "grl\[tensorboard\]" \(in process 0 of 2\)\.$'):
        to_the_first_step(monkeypatch, lambda text: [text, "" if "pip" in text else text], None, config, out=tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in names}
