"""JAX over several devices and processes: how they join, which devices share the batches, and what lies where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from grl.experiment.config import Config, ConfigError
from grl.experiment.processes import Processes, ProcessLostError, RefusedByAllError, launched

__all__ = ["find_devices", "join", "make_mesh", "place", "spread"]

_LONGEST = 4096  # bytes of a text that processes exchange
# What collectives and the coordination service say of another process, in exceptions of several types.
_LOST = re.compile("gloo|nccl|coordination|heartbeat|barrier|DEADLINE_EXCEEDED|UNAVAILABLE", re.IGNORECASE)


@contextmanager
def join(config: Config) -> Iterator[Processes]:
    """Join the processes of the run by `jax.distributed`; collectives go over gloo on CPUs, over NCCL on GPUs.

    Args:
        config: the run's settings; timeout is read.

    Yields:
        The processes.

    Raises:
        ConfigError: the environment does not say where the first process is.
        ProcessLostError: another process does not come, ends, or keeps this one waiting, and in the block a collective
            has failed for it. End the process by `os._exit` then: JAX's own end would wait for the lost one.
    """
    _, index, count = launched()
    try:
        _initialize(index, count, config.timeout)
        yield Processes(jax.process_index(), jax.process_count(), _exchange)
    except ConfigError as error:
        if isinstance(error, RefusedByAllError):  # so none waits for another
            jax.distributed.shutdown()
        raise
    except (RuntimeError, ValueError) as error:
        if not _LOST.search(str(error)):
            raise
        raise ProcessLostError(
            f"process {index} of {count}: another one has ended, or was waited for in vain for {config.timeout} s"
            f" (--timeout): {str(error).splitlines()[0]}"
        ) from error
    jax.distributed.shutdown()


def find_devices(name: str, processes: Processes) -> list[jax.Device]:
    """Return the devices that share the batches: all of a kind, in all processes, or the one that has this number.

    Args:
        name: "cpu", "gpu", "gpu:1"; "cuda" is "gpu".
        processes: the run's.

    Raises:
        LookupError: there is no such device.
        ConfigError: one device for several processes.
    """
    kind, _, index = name.partition(":")
    if processes.count > 1 and index:
        raise ConfigError(f"device: got {name!r} for {processes.count} processes; expected the name without a number.")
    kind = "gpu" if kind == "cuda" else kind
    local = dict.fromkeys([*jax.local_devices(), *jax.local_devices(backend="cpu")])
    present = {f"{device.platform}:{device.id}": device for device in local}
    chosen = [
        device
        for name, device in present.items()
        if name == f"{kind}:{index}" or (device.platform, "") == (kind, index)
    ]
    if not chosen:
        raise LookupError(f"no such device for JAX here: {name!r}; present: {', '.join(present)}")
    if processes.count > 1:
        chosen = sorted(jax.devices(kind), key=lambda device: (device.process_index, device.id))
    return chosen


def make_mesh(devices: list[jax.Device]) -> Mesh:
    """Return a mesh of one axis, "batch", which `grl.jax_impl.convolution` knows by that name."""
    return Mesh(np.array(devices), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))


def spread(parameter: NDArray[Any], mesh: Mesh, sharding: str) -> jax.Array:
    """Return a parameter, or what an optimiser keeps of one, on the devices of the mesh.

    Args:
        parameter: the same in all processes.
        mesh: the devices.
        sharding: "replicated": whole on each; "fsdp": cut along its longest axis that has equal shares for all, whole
            where there is none. XLA gathers the shares where they are used, and reduces gradients to them.
    """
    axes = [axis for axis, size in enumerate(parameter.shape) if size and size % mesh.size == 0]
    if sharding == "replicated" or not axes:
        return place(parameter, mesh)
    longest = max(axes, key=lambda axis: parameter.shape[axis])
    return _lay_out(parameter, mesh, longest, parameter.shape)


def place(array: NDArray[Any], mesh: Mesh, axis: int | None = None) -> jax.Array:
    """Return an array on the devices of the mesh: along an axis each has its samples; without one each has all.

    Args:
        array: of several processes, each gives its part along the axis, in the order of the processes.
        mesh: the devices.
        axis: the one that counts the samples.
    """
    return _lay_out(array, mesh, axis, None if axis is not None else array.shape)


def _lay_out(array: NDArray[Any], mesh: Mesh, axis: int | None, shape: tuple[int, ...] | None) -> jax.Array:
    """Of an array that all processes have whole, the shape is its own; of parts, it follows from them."""
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "batch")
    placed: jax.Array = jax.make_array_from_process_local_data(NamedSharding(mesh, spec), array, shape)
    return placed


def _initialize(index: int, count: int, timeout: int) -> None:
    try:
        jax.distributed.initialize(  # the rest is in the environment: the first one's address, and what SLURM says
            num_processes=count,
            process_id=index,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except ValueError as error:
        raise ConfigError(f"processes: {error}") from error


def _exchange(text: str) -> list[str]:
    padded = text.encode()[:_LONGEST].ljust(_LONGEST, b"\0")
    rows = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in np.asarray(rows)]
