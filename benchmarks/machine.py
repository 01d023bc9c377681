"""The machine that a run was measured on. Without it, a figure means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["count_units", "describe", "find_device"]

_PACKAGES = ("torch", "jax", "flax", "optax", "numpy", "pytorch-revgrad", "torch-gradient-reversal")


def find_device(wanted: str) -> str:
    """Return "cuda" or "cpu" for "auto": the GPU if PyTorch or JAX finds one."""
    if wanted != "auto":
        return wanted
    return "cuda" if _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") else "cpu"


def count_units(device: str) -> int:
    """Return how many processes can have a core, or a GPU, of their own."""
    if device == "cpu":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return len((_ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines())


def describe(device: str) -> dict[str, Any]:
    """Return device, driver, clocks as found, processor, versions, git revision and date; None where one is unknown."""
    fields = "name,driver_version,clocks.current.sm,clocks.current.memory,clocks.max.sm,power.limit"
    gpu = _ask("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader") if device == "cuda" else None
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device,
        "gpu": None if gpu is None else dict(zip(fields.split(","), gpu.splitlines()[0].split(", "), strict=False)),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "revision": _ask("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _ask(*command: str) -> str | None:
    """Return the output of a program, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
