"""Several processes or devices train the model that one would; and what they do when one of them refuses, or dies."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from grl.arrays import Weights
from grl.experiment import Result, train
from grl.experiment.config import Config
from grl.weights_file import load_weights
from tests.support.installed import deep, each_backend, needs_flax, needs_torch
from tests.support.several_processes import (
    ROOT,
    Ended,
    Start,
    devices,
    end,
    free_port,
    jax_environments,
    slurm_environments,
    torch_environments,
)

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("nobody_else")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Noise in three shades, one for each class, for batch norm and convolutions to learn; odd numbers of them."""
    generator = np.random.default_rng(0)
    labels = np.arange(47) % 3
    source = generator.normal(labels[:, None, None, None], 1.0, (47, 3, 8, 8))
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, x_source=source, y_source=labels, x_target=generator.normal(2.0, 2.0, (41, 3, 8, 8)))
    return str(path)


MOONS = Config.recommended("moons", steps=50, dtype="float64", log_every=1, device="cpu")


def experiments(backend: str, images: str, **settings: Any) -> dict[str, Config]:
    """Adam on vectors, SGD with clipping on images, and images without adaptation: a part that gets no gradient."""
    pictures = Config.recommended(
        "data", data=images, batch_size=16, optimizer="sgd", learning_rate=1e-2, clip_norm=0.5, steps=50, log_every=1,
        dtype="float64", channels=(4, 8), label_hidden=(), domain_hidden=(8,),
    )  # fmt: skip
    plain = replace(pictures, method="source-only", steps=10, clip_norm=None)
    named = {"moons": MOONS, "images": pictures, "plain": plain}
    return {name: replace(config, backend=backend, **settings) for name, config in named.items()}


@lru_cache
def alone(config: Config) -> Result:
    return train(config)


def check_equal(configs: Sequence[Config], folder: Path, count: int) -> None:
    """What the processes have written is what this one computes alone."""
    for number, config in enumerate(configs):
        expected = alone(replace(config, device="cpu:0", sharding="replicated"))
        expected_losses = [(record["label_loss"], record["domain_loss"]) for record in expected.metrics["history"]]
        for index in range(count):
            with np.load(folder / f"{number}-{index}.npz") as found:
                losses = found["losses"]
                np.testing.assert_allclose(losses, np.array(expected_losses, np.float64), rtol=1e-9, atol=0)
                for name, array in expected.weights.items():
                    np.testing.assert_allclose(found[name], array, rtol=1e-8, atol=1e-11, err_msg=name)
            metrics = json.loads((folder / f"{number}-{index}.json").read_text())
            for name in ("source_accuracy", "target_accuracy", "domain_accuracy"):
                assert metrics[name] == expected.metrics[name], name
            assert metrics["held"] == share_of(expected.weights, config, metrics["devices"], index)


def share_of(weights: Weights, config: Config, count: int, index: int) -> dict[str, int]:
    """How many numbers of each parameter a device has: PyTorch cuts the first axis, JAX any that has equal shares."""
    found = {}
    for name, array in weights.items():
        if "running_" in name:
            continue
        found[name] = array.size
        if config.sharding == "fsdp" and config.backend == "torch":
            rows = -(-len(array) // count)
            found[name] = array[index * rows : (index + 1) * rows].size
        elif config.sharding == "fsdp" and any(size % count == 0 for size in array.shape):
            found[name] //= count
    return found


def words_of(configs: Sequence[Config], folder: Path) -> list[str]:
    settings = json.dumps([asdict(config) for config in configs])
    return ["-m", "tests.support.one_of_several", settings, str(folder)]


# The same losses.


@needs_torch
@pytest.mark.parametrize("sharding", ["replicated", "fsdp"])
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=deep)])
def test_torch_processes_train_the_model_of_one(
    count: int, sharding: str, images: str, tmp_path: Path, start: Start
) -> None:
    configs = [*experiments("torch", images, sharding=sharding).values()]
    for ended in end(start(words_of(configs, tmp_path), torch_environments(count))):
        assert ended.status == 0, ended.err
        assert "Warning" not in ended.err
    check_equal(configs, tmp_path, count)


# Compiling is what takes long in JAX: each of the default runs has one task.
ALL = ("moons", "images", "plain")


@needs_flax
@pytest.mark.parametrize(("count", "sharding", "names"), [
    (2, "replicated", ["images"]),
    (8, "fsdp", ["moons"]),
    *(pytest.param(n, sharding, ALL, marks=deep) for n in (1, 2, 4, 8) for sharding in ("replicated", "fsdp")),
])  # fmt: skip
def test_jax_devices_train_the_model_of_one(
    count: int, sharding: str, names: Sequence[str], images: str, tmp_path: Path, start: Start
) -> None:
    configs = [experiments("jax", images, sharding=sharding)[name] for name in names]
    (ended,) = end(start(words_of(configs, tmp_path), [devices(count)]))
    assert ended.status == 0, ended.err
    check_equal(configs, tmp_path, count=1)
    assert json.loads((tmp_path / "0-0.json").read_text())["devices"] == count


@needs_flax
@pytest.mark.parametrize(("each", "sharding", "names", "environments"), [
    pytest.param(1, "fsdp", ["images"], slurm_environments, marks=deep),
    *(
        pytest.param(each, sharding, ALL, jax_environments, marks=deep)
        for each in (1, 2) for sharding in ("replicated", "fsdp")
    ),
])  # fmt: skip
def test_jax_processes_train_the_model_of_one(
    each: int, sharding: str, names: Sequence[str], environments: Any, images: str, tmp_path: Path, start: Start
) -> None:
    configs = [experiments("jax", images, sharding=sharding)[name] for name in names]
    surroundings = [environment | devices(each) for environment in environments(2)]
    for ended in end(start(words_of(configs, tmp_path), surroundings)):
        assert ended.status == 0, ended.err
    check_equal(configs, tmp_path, count=2)


# What travels between them.


_DTENSOR = """
import os
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from tests.support import torch_forms
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(32.0, dtype=torch.float64).reshape(8, 4)
for name, reverse in torch_forms.FORMS.items():
    for placement in (Shard(0), Shard(1), Replicate()):
        x = distribute_tensor(whole, mesh, [placement]).requires_grad_()
        with CommDebugMode() as counted:
            y = reverse(x, 0.5)
            y.backward(x.detach())
        gradient = x.grad
        assert counted.get_total_counts() == 0, (name, placement, counted.get_comm_counts())
        assert y.placements == gradient.placements == (placement,), name
        assert torch.equal(gradient.full_tensor(), -0.5 * whole), name
with CommDebugMode() as counted:
    distribute_tensor(whole, mesh, [Shard(0)]).full_tensor()
assert counted.get_total_counts() > 0, "the instrument sees a collective where there is one"
torch.distributed.destroy_process_group()
os._exit(0)  # Python's own end aborts now and then in PyTorch 2.13
"""


@needs_torch
def test_the_layer_on_dtensors_adds_no_collective(start: Start) -> None:
    for ended in end(start(["-c", _DTENSOR], torch_environments(2))):
        assert ended.status == 0, ended.err


_STEP = """
import json, re, sys
from unittest.mock import patch
import numpy as np
import grl.jax_impl.dann
from grl.experiment.config import Config
from grl.experiment import batches, build_trainer, load_data
config = Config(**json.loads(sys.argv[1]))
task = load_data(config)
x, y, x_target = next(batches(task, config))

def collectives():
    trainer = build_trainer(task, config)
    program = trainer.lower(x[None], y[None], x_target[None], np.ones(1), np.ones((1, 2)))
    text = program.compile().as_text()
    return re.findall(r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\\(", text)

with_layer = collectives()
with patch.object(grl.jax_impl.dann, "gradient_reversal", lambda x, coeff: x):
    without = collectives()
print(json.dumps([sorted(with_layer), sorted(without)]))
"""


@needs_flax
@pytest.mark.parametrize("sharding", ["replicated", "fsdp"])
def test_a_training_step_on_sharded_arrays_has_no_collective_that_an_identity_had_not(
    sharding: str, images: str, start: Start
) -> None:
    config = experiments("jax", images, sharding=sharding)["images"]
    (ended,) = end(start(["-c", _STEP, json.dumps(asdict(config))], [devices(2)]))
    assert ended.status == 0, ended.err
    with_layer, without = json.loads(ended.out)
    assert with_layer == without
    if sharding == "replicated":
        assert set(with_layer) == {"all-reduce"}, "of gradients, statistics and losses; no samples are gathered"
    # Over gloo, between processes on CPUs, it gives wrong sums without a word (jax#40830; jax 0.10 and 0.11 at least).
    assert "reduce-scatter" not in with_layer


# The command line.


SHORT = "--steps 50 --dtype float64 --log-every 1"


def check_run(folder: Path, backend: str, outputs: str) -> None:
    """One process wrote the files, and printed what one prints; the weights are those of a process alone."""
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "metrics.json", "metrics.jsonl", "model.safetensors", "report.png")
    }
    assert outputs.count(f"dann, {backend}: step 50/50") == 1
    assert outputs.count("at the last step") == 1
    expected = alone(replace(MOONS, backend=backend, device="cpu:0"))
    for name, array in load_weights(folder / "model.safetensors").items():
        np.testing.assert_allclose(array, expected.weights[name], rtol=1e-8, atol=1e-11, err_msg=name)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["target_accuracy"] == expected.metrics["target_accuracy"]
    assert metrics["devices"] == 2


GUIDE = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)


def in_shell(script: str, start: Start, out: Path, options: str = "", **environment: str) -> Ended:
    """Run lines of the guide as they are, but for the programs' places, a free port, and what keeps a run short."""
    script = script.replace("torchrun ", f"{sys.executable} -m torch.distributed.run ")
    script = re.sub(r"(?<!-m )grl train|python -m grl train", f"{sys.executable} -m grl train", script)
    script = re.sub(r"(localhost:|PORT:-)\d+", rf"\g<1>{free_port()}", script)
    script = script.replace("--task moons", f"--task moons {SHORT} {options} --out {out}")
    (ended,) = end(
        start(
            ["-c", "import os, sys; os.execvp('bash', ['bash', '-ec', *sys.argv[1:]])", script, "bash"], [environment]
        )
    )
    return ended


@needs_torch
def test_the_guides_torchrun_trains_one_model_and_writes_one_run(tmp_path: Path, start: Start) -> None:
    assert BLOCKS[0].startswith("torchrun --standalone --nproc-per-node 2 -m grl train")
    ended = in_shell(BLOCKS[0], start, tmp_path / "run")
    assert ended.status == 0, ended.err
    assert ended.err == ""
    check_run(tmp_path / "run", "torch", ended.out)


@needs_flax
def test_the_guides_jax_processes_train_one_model_and_write_one_run(tmp_path: Path, start: Start) -> None:
    assert "JAX_PROCESS_ID=1 grl train" in BLOCKS[1]
    ended = in_shell(BLOCKS[1], start, tmp_path / "run")
    assert ended.status == 0, ended.err
    check_run(tmp_path / "run", "jax", ended.out)


# What a cluster has: srun starts a task for each of SLURM_NTASKS, and scontrol names the nodes.
_SRUN = """#!/bin/bash
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_NODELIST=localhost "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit; done
"""


@deep
@each_backend
def test_the_guides_slurm_script_trains_one_model(backend: str, tmp_path: Path, start: Start) -> None:
    assert f"sbatch docs/slurm/{backend}.sh" in GUIDE
    for name, content in (("srun", _SRUN), ("scontrol", "#!/bin/bash\necho localhost\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    script = (ROOT / "docs" / "slurm" / f"{backend}.sh").read_text().replace('"$@"', "--task moons")
    surroundings = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "localhost",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    ended = in_shell(script, start, tmp_path / "run", "--device cpu", **surroundings)
    assert ended.status == 0, ended.err
    check_run(tmp_path / "run", backend, ended.out)


# Refusals.


@deep
@needs_torch
def test_a_refusal_is_printed_once_and_ends_all_processes(tmp_path: Path, start: Start) -> None:
    words = [
        "-m",
        "grl",
        "train",
        "--backend",
        "torch",
        "--task",
        "moons",
        "--batch-size",
        15,
        "--out",
        tmp_path / "run",
    ]
    first, second = end(start(words, torch_environments(2)))
    assert (first.status, second.status) == (2, 2)
    assert first.err == "grl: --batch-size: got 15 for 2 processes; expected a multiple of 2.\n"
    assert second.err == second.out == ""
    assert not (tmp_path / "run").exists()


@needs_torch
@pytest.mark.parametrize("sharding", ["replicated", pytest.param("fsdp", marks=deep)])
def test_a_file_that_one_process_alone_lacks_ends_all_with_its_name(
    sharding: str, images: str, tmp_path: Path, start: Start
) -> None:
    """In building its trainer, too, a process waits for no other: one may have refused."""
    words = ["-m", "grl", "train", "--backend", "torch", "--sharding", sharding, "--out", tmp_path / "run", "--data"]
    environments = torch_environments(2)
    processes = [*start([*words, images], environments[:1]), *start([*words, tmp_path / "none.npz"], environments[1:])]
    first, second = end(processes)
    assert (first.status, second.status) == (2, 2)
    assert "none.npz: cannot be read: No such file or directory (in process 1 of 2)." in first.err
    assert second.err == ""


@pytest.mark.parametrize(
    ("backend", "environment"), [("jax", {"RANK": "0", "WORLD_SIZE": "2"}), ("torch", jax_environments(2)[0])]
)
def test_the_launcher_of_the_other_framework_is_refused(
    backend: str, environment: dict[str, str], tmp_path: Path, start: Start
) -> None:
    words = ["-m", "grl", "train", "--backend", backend, "--task", "moons", "--out", tmp_path / "run"]
    (ended,) = end(start(words, [environment]))
    assert ended.status == 2
    assert f"--backend: got {backend!r} in one of 2 processes that are started for" in ended.err
    assert len(ended.err.splitlines()) == 1


@deep
@needs_torch
def test_processes_that_never_come_are_not_waited_for_longer_than_the_timeout(tmp_path: Path, start: Start) -> None:
    words = ["-m", "grl", "train", "--backend", "torch", "--task", "moons", "--timeout", 3, "--out", tmp_path / "run"]
    (ended,) = end(start(words, torch_environments(2)[:1]))
    assert ended.status == 1
    assert ended.err.splitlines()[-1].startswith(
        "grl: process 0 of 2: another process ended, or did not answer within 3 s"
    )
