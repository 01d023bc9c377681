"""Several processes of one run: how a test starts them, with what a launcher would set, and how they end."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LONGEST = 200  # seconds of a process: a busy machine takes long to import a framework


Start = Callable[..., list[subprocess.Popen[str]]]


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def end(processes: Sequence[subprocess.Popen[str]]) -> list[Ended]:
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=LONGEST)
        ended.append(Ended(process.returncode, out, err))
    return ended


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torch_environments(count: int) -> list[dict[str, str]]:
    """What torchrun sets, without the seconds of a launcher."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    return [{**common, "RANK": str(index), "LOCAL_RANK": str(index)} for index in range(count)]


def jax_environments(count: int) -> list[dict[str, str]]:
    common = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    return [{**common, "JAX_PROCESS_ID": str(index)} for index in range(count)]


def slurm_environments(count: int) -> list[dict[str, str]]:
    common = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    common |= {"SLURM_STEP_NUM_TASKS": str(count), "JAX_COORDINATOR_PORT": str(free_port())}
    return [{**common, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(count)]


def environments_of(backend: str, count: int) -> list[dict[str, str]]:
    return {"torch": torch_environments, "jax": jax_environments}[backend](count)


def devices(count: int) -> dict[str, str]:
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
