"""JAX over several devices and processes: how they join, which devices share the batches, and where arrays lie."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grl.arrays import Array
from grl.experiment.config import Config, ConfigError
from grl.experiment.devices import DeviceError, parse_device
from grl.experiment.processes import Processes, ProcessLostError, RefusedByAllError, launched

__all__ = ["find_devices", "join", "make_mesh", "place", "spread"]

_LONGEST = 4096  # bytes of a text that processes exchange
# Words with which collectives and the coordination service report another process, in exceptions of several types.
_LOST = re.compile("gloo|nccl|coordination|heartbeat|barrier|DEADLINE_EXCEEDED|UNAVAILABLE", re.IGNORECASE)


@contextmanager
def join(config: Config) -> Iterator[Processes]:
    """Join the processes of the run by `jax.distributed`; collectives go over gloo on CPUs, over NCCL on GPUs.

    Args:
        config: the run's settings; timeout is read.

    Yields:
        The processes.

    Raises:
        ConfigError: the environment does not name the address of the first process.
        ProcessLostError: another process did not come, or a collective in the block failed because a process ended or
            did not answer. End this process by `os._exit` then: JAX's own end would wait for the lost one.
    """
    _, index, count = launched()
    try:
        _initialize(index, count, config.timeout)
        yield Processes(jax.process_index(), jax.process_count(), _exchange)
    except ConfigError as error:
        if isinstance(error, RefusedByAllError):  # all processes are here, so none waits for another
            jax.distributed.shutdown()
        raise
    except (RuntimeError, ValueError) as error:
        if not _LOST.search(str(error)):
            raise
        raise ProcessLostError.of(index, count, config.timeout, error) from error
    jax.distributed.shutdown()


def find_devices(name: str, processes: Processes) -> list[jax.Device]:
    """Return the devices that share the batches: all of a kind, in all processes, or the one with this number.

    Args:
        name: "cpu", "gpu", "gpu:1"; "cuda" is "gpu".
        processes: the processes of the run.

    Raises:
        DeviceError: JAX finds no such device.
        ConfigError: several processes cannot share one device.
    """
    kind, number = parse_device(name, processes)
    kind = "gpu" if kind == "cuda" else kind
    devices = dict.fromkeys([*jax.local_devices(), *jax.local_devices(backend="cpu")])
    present = {f"{device.platform}:{device.id}": device for device in devices}
    if number:
        chosen = [device for full_name, device in present.items() if full_name == f"{kind}:{number}"]
    else:
        chosen = [device for device in devices if device.platform == kind]
    if not chosen:
        raise DeviceError(name, "JAX", present)
    if processes.count > 1:
        chosen = sorted(jax.devices(kind), key=lambda device: (device.process_index, device.id))
    return chosen


def make_mesh(devices: list[jax.Device]) -> Mesh:
    """Return a mesh of one axis, "batch"; `grl.jax_impl.convolution` knows it by that name."""
    return Mesh(np.array(devices), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))


def spread(parameter: Array, mesh: Mesh, sharding: str) -> jax.Array:
    """Return a parameter, or an optimiser's moment of one, on the devices of the mesh.

    Args:
        parameter: the array, which is the same in all processes.
        mesh: the devices.
        sharding: "replicated": whole on each device. "fsdp": cut along the longest axis that has equal shares for all
            devices, or whole if there is none. XLA gathers the shares for use, and reduces gradients to them.
    """
    axes = [axis for axis, size in enumerate(parameter.shape) if size and size % mesh.size == 0]
    if sharding == "replicated" or not axes:
        return place(parameter, mesh)
    longest = max(axes, key=lambda axis: parameter.shape[axis])
    return _lay_out(parameter, mesh, longest, parameter.shape)


def place(array: Array, mesh: Mesh, axis: int | None = None) -> jax.Array:
    """Return an array on the devices of the mesh: each holds its samples along an axis, or, without one, the whole.

    Args:
        array: the array. Each of several processes passes its part along the axis, in the order of the processes.
        mesh: the devices.
        axis: the axis that counts the samples.
    """
    return _lay_out(array, mesh, axis, None if axis is not None else array.shape)


def _lay_out(array: Array, mesh: Mesh, axis: int | None, shape: tuple[int, ...] | None) -> jax.Array:
    """Place an array that every process has in full, whose shape is given, or parts, which determine the shape."""
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "batch")
    placed: jax.Array = jax.make_array_from_process_local_data(NamedSharding(mesh, spec), array, shape)
    return placed


def _initialize(index: int, count: int, timeout: int) -> None:
    try:
        # The environment holds the rest: the address of the first process, and SLURM's variables.
        jax.distributed.initialize(
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
