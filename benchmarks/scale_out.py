"""`scale-out`: a training step in several processes compared with one, their communication, and a projection to more.

A group of n processes takes its samples in turn, round after round: its first process alone with 64 images of each
domain; all with the same 64, a share each; all with 64 each; an all-reduce of one number, and one of as many as the
model has. On a CPU each process is bound to one core and computes on it alone: n processes are n times the machine.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from math import log2, prod
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.record import Row, find, relate
from benchmarks.settings import Tell

__all__ = ["predict", "run", "tables"]

_TASK, _BATCH, _STEPS = "mnist-mnistm", 64, 10  # steps of one sample: one call of the trainer
ALONE, SHARED, EACH = "1 process, 64 images", "the same 64 images", "64 images each"
SMALL, LARGE = "all-reduce of one number", "all-reduce of the gradients"
_LINKS = {"10 Gb/s, 50 µs": (50e3, 1.25), "100 Gb/s, 10 µs": (10e3, 12.5), "400 Gb/s, 5 µs": (5e3, 50.0)}
"""Hypothetical networks: ns per hop, bytes per ns."""


def run(device: str, counts: Sequence[int], rounds: int, tell: Tell) -> list[Row]:
    """Time groups of so many processes in each framework that is installed.

    Raises:
        RuntimeError: a process failed; the message is the end of what it said.
    """
    rows: list[Row] = []
    groups = [(name, count) for name in ("torch", "jax") if find_spec(name) for count in counts]
    for done, (framework, count) in enumerate(groups):
        tell(done, len(groups), f"{framework}, {count} processes")
        rows += _rows(framework, count, _measure(framework, count, device, rounds))
    relate(rows)
    return rows


def predict(compute: float, count: int, exchanged: float, messages: float, hop: float, bandwidth: float) -> float:
    """Return the efficiency of n processes with a batch each, where their all-reduces overlap with nothing.

    Args:
        compute: ns of a step alone.
        count: n.
        exchanged: bytes that a step reduces; in a ring each process sends 2·(n − 1)/n times as many.
        messages: all-reduces of a step; each is 2·log2(n) hops, up a tree and down.
        hop: ns from one process to the next.
        bandwidth: bytes per ns that a process sends.

    Example:
        >>> round(predict(40e6, 8, 0.8e6, 10, 50e3, 1.25), 2)
        0.91
    """
    sent = 2 * (count - 1) / count * exchanged / bandwidth
    return compute / (compute + messages * hop * 2 * log2(count) + sent)


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Yield the measurements, the model's estimates of them, and its projection to more processes on other networks."""
    measured = Table(title="a DANN step on mnist-mnistm", box=box.SIMPLE_HEAD)
    for name in ("", "processes", "step", "efficiency", "on paper"):
        measured.add_column(name, justify="left" if not name else "right")
    paper = Table(title="efficiency on paper, 64 images each, the compute of this machine", box=box.SIMPLE_HEAD)
    for name in ("", "network", "8 processes", "64", "512", "0.9 at 64 from a step of"):
        paper.add_column(name, justify="left" if name in ("", "network") else "right")
    for framework, count in dict.fromkeys((row.framework, row.params["processes"]) for row in rows):
        of = {row.form: row for row in find(rows, framework=framework, processes=count)}
        compute = of[ALONE].summary().median
        cost = of[EACH].params["bytes"], of[EACH].params["messages"]
        link = _fit(of, count)
        measured.add_row(f"{framework}, {ALONE}", "1", f"{compute / 1e6:.1f} ms", "1", "")
        for form, share in ((SHARED, count), (EACH, 1)):
            efficiency = 1 / (share * _median(of[form].ratio))
            expected = predict(compute / share, count, *cost, *link)
            step = f"{of[form].summary().median / 1e6:.1f} ms"
            measured.add_row(f"{framework}, {form}", str(count), step, f"{efficiency:.2f}", f"{expected:.2f}")
        here = f"as measured here: {8 * link[1]:.2g} Gb/s, {link[0] / 1e3:.0f} µs"
        for name, network in ({here: link} | _LINKS).items():
            figures = (f"{predict(compute, n, *cost, *network):.2f}" for n in (8, 64, 512))
            break_even = 9 * (1 / predict(1.0, 64, *cost, *network) - 1)
            paper.add_row(framework, name, *figures, f"{break_even / 1e6:.2g} ms")
    yield measured
    yield paper


def _fit(of: dict[str, Row], count: int) -> tuple[float, float]:
    """Hop (ns) and bandwidth (bytes per ns) by two all-reduces."""
    small, large = of[SMALL].summary().median, of[LARGE].summary().median
    return small / (2 * log2(count)), 2 * (count - 1) / count * of[LARGE].params["bytes"] / max(large - small, 1.0)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _rows(framework: str, count: int, found: dict[str, Any]) -> Iterator[Row]:
    cost = {"processes": count, "bytes": found["bytes"], "messages": found["messages"]}
    for form, samples in found["samples"].items():
        is_floor = form not in (SHARED, EACH)
        floor = None if is_floor else (ALONE, "step")
        measure = "step" if form in (ALONE, SHARED, EACH) else "all-reduce"
        yield Row("scale-out", framework, form, "floor" if is_floor else "ours", measure, "ns", cost, samples, floor)


def _measure(framework: str, count: int, device: str, rounds: int) -> dict[str, Any]:
    """Start the processes of a group; return the output of the first one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples.json"
        words = [sys.executable, "-m", "benchmarks.scale_out", framework, device, str(rounds), str(out)]
        processes = []
        for index in range(count):
            environment = {
                "torch": {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": index, "WORLD_SIZE": count},
                "jax": {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_PROCESS_ID": index,
                    "JAX_NUM_PROCESSES": count,
                    "JAX_LOCAL_DEVICE_IDS": index,
                },
            }[framework]
            surroundings = os.environ | {name: str(value) for name, value in environment.items()}
            surroundings |= {"LOCAL_RANK": str(index), "OMP_NUM_THREADS": "1"}
            log = open(Path(folder) / f"{index}.log", "w+", encoding="utf-8")  # noqa: SIM115  # until it has ended
            processes.append((subprocess.Popen(words, env=surroundings, stdout=log, stderr=log), log))
        try:
            for process, log in processes:
                if process.wait(timeout=1800):
                    log.seek(0)
                    raise RuntimeError(f"{framework}, a process of {count}: {log.read()[-500:]}")
            return json.loads(out.read_text(encoding="utf-8"))
        finally:
            for process, log in processes:
                process.kill()
                process.wait()
                log.close()


def _work(framework: str, device: str, rounds: int, out: str) -> None:
    """Run one process of a group."""
    from grl.experiment import processes as of_grl

    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[of_grl.launched()[1] % len(cores)]})  # before a framework counts its threads

    from grl.experiment import join, load_data
    from grl.experiment.config import Config

    config = Config.recommended(
        _TASK, backend=framework, batch_size=_BATCH, device="gpu" if device == "cuda" else "cpu"
    )
    task = load_data(config)
    with join(config) as processes:
        # In a function of its own: a DistributedDataParallel that outlives the process group may wait for it forever.
        found = _sample(framework, config, task, processes, rounds)
        if processes.index == 0:
            Path(out).write_text(json.dumps(found), encoding="utf-8")


def _sample(framework: str, config: Any, task: Any, processes: Any, rounds: int) -> dict[str, Any]:
    from grl.experiment import Processes

    group = replace(config, batch_size=_BATCH * processes.count)
    shared, each = _training(task, config, processes), _training(task, group, processes)
    calls: dict[str, Callable[[], Any]] = {SHARED: shared[1], EACH: each[1]}
    if processes.index == 0:
        calls[ALONE] = _training(task, config, Processes())[1]
    numbers = sum(weights.size for weights in shared[0].weights().values())
    calls |= {SMALL: _all_reduce(framework, 1, shared[0]), LARGE: _all_reduce(framework, numbers, shared[0])}
    samples: dict[str, list[float]] = {form: [] for form in (ALONE, SHARED, EACH, SMALL, LARGE)}
    for done in range(rounds + 1):  # the first one warms up
        for form in samples:
            processes.exchange("")  # all begin together
            started = time.perf_counter_ns()
            calls.get(form, int)()
            if done:
                samples[form].append((time.perf_counter_ns() - started) / _STEPS)
    exchanged, messages = _exchanged(framework, each)
    return {"samples": samples, "bytes": exchanged, "messages": messages}


def _training(task: Any, config: Any, processes: Any) -> tuple[Any, Callable[[], Any], Any]:
    """Return a trainer, a call that makes its steps, and the arguments of that."""
    from itertools import islice

    import numpy as np

    from grl.experiment import batches, build_trainer

    trainer = build_trainer(task, config, processes)
    arrays = [np.stack(a) for a in zip(*islice(batches(task, config, 0, processes), _STEPS), strict=True)]
    arguments = (*arrays, np.full(_STEPS, 0.5), np.array([config.rates(0)] * _STEPS))
    return trainer, lambda: trainer.run(*arguments), arguments


def _all_reduce(framework: str, numbers: int, trainer: Any) -> Callable[[], Any]:
    """Return a call that reduces so many numbers of float32, as often as a sample has steps."""
    if framework == "torch":
        import torch

        from grl.experiment.trainers.torch_processes import mean

        tensor = torch.zeros(numbers, device=trainer.device)
        return lambda: [mean(tensor).flatten()[0].item() for _ in range(_STEPS)]
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from grl.experiment.trainers.jax_processes import place

    array = place(np.zeros((1, numbers), np.float32), trainer.mesh, axis=0)
    total = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(trainer.mesh, PartitionSpec()))
    return lambda: [jax.block_until_ready(total(array)) for _ in range(_STEPS)]


def _exchanged(framework: str, training: tuple[Any, Callable[[], Any], Any]) -> tuple[int, int]:
    """Bytes and number of the all-reduces of one step."""
    trainer, _, arguments = training
    if framework == "torch":
        of_gradients = sum(parameter.nbytes for parameter in trainer.model.parameters())
        norms = [4 * norm.weight.nbytes * 2 for norm in trainer.model.backbone.norms]  # 2 moments; 2 domains, 2 ways
        return of_gradients + sum(norms), 1 + 4 * len(norms)
    text = trainer.lower(*arguments).compile().as_text()
    reduced = re.findall(r"= (.+?) all-reduce(?:-start)?\(", text)
    shapes = [shape for found in reduced for shape in re.findall(r"f32\[([\d,]*)\]", found)]
    return 4 * sum(prod(map(int, filter(None, shape.split(",")))) for shape in shapes), len(reduced)


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
