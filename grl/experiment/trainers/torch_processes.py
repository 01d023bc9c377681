"""PyTorch over several processes: how they join, which state they share, and batch norm over the whole batch."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from grl.experiment.config import Config
from grl.experiment.devices import DeviceError, parse_device
from grl.experiment.processes import Processes, ProcessLostError, RefusedByAllError, launched

__all__ = ["fill", "find_device", "full", "gather", "join", "local", "mean", "spread"]

_NEW = "forward_sync_buffers"  # PyTorch 2.13 introduces it and warns about the old name
_SYNC_BUFFERS = _NEW if _NEW in signature(DistributedDataParallel).parameters else "broadcast_buffers"


@contextmanager
def join(config: Config) -> Iterator[Processes]:
    """Join the processes that torchrun has started: over gloo on CPUs, over the accelerator's library (NCCL) elsewhere.

    Args:
        config: the run's settings; device and timeout are read.

    Yields:
        The processes.

    Raises:
        ProcessLostError: another process did not come, or a collective in the block failed because a process ended or
            did not answer. End this process by `os._exit` then: PyTorch's own end may wait for the lost one.
    """
    kind, backend = _kind(config.device), "gloo"
    if any(name.startswith(f"{kind}:") for name in _accelerators()):  # all processes refuse a device that is missing
        backend = f"cpu:gloo,{kind}:{dist.get_default_backend_for_device(kind)}"
    _, index, count = launched()
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=config.timeout))
        yield Processes(dist.get_rank(), dist.get_world_size(), _exchange)
    except RefusedByAllError:  # all processes are here, so none waits for another
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        raise ProcessLostError.of(index, count, config.timeout, error) from error
    gc.collect()  # a DistributedDataParallel that outlives its process group may wait for it forever
    dist.destroy_process_group()


def find_device(name: str, processes: Processes) -> torch.device:
    """Return the device of this process. Each of several processes on one machine takes an accelerator of its own.

    Args:
        name: the framework's name of it: "cpu", "cuda", "cuda:1"; "gpu" is "cuda".
        processes: the processes of the run.

    Raises:
        DeviceError: PyTorch finds no such device.
        ConfigError: several processes cannot share one accelerator.
    """
    present = ["cpu", *_accelerators()]
    number = parse_device(name, processes).number
    if processes.count > 1 and _kind(name) != "cpu":
        number = os.environ.get("LOCAL_RANK", "0")
    device = f"{_kind(name)}:{number or 0}"
    if device not in ("cpu:0", *present):
        raise DeviceError(name, "PyTorch", present)
    return torch.device("cpu" if device == "cpu:0" else device)


def spread(objective: nn.Module, parts: list[nn.Module], sharding: str) -> nn.Module:
    """Return a module for this process's share of a batch, whose gradients are those of the whole batch.

    Args:
        objective: a module from this process's samples to the mean of their losses.
        parts: the modules in it that hold the parameters.
        sharding: "replicated": each process holds all parameters (DistributedDataParallel). "fsdp": each holds its
            share, and gathers a part of the network when that part is computed (`fully_shard`).

    Returns:
        The module to use instead of the objective. Its parameters may be new ones (DTensors).
    """
    for part in parts:
        _normalise_over_all(part)
    if sharding == "fsdp":
        device = next(parts[0].parameters()).device
        # A flattened feature map and the reversal return views, but nothing changes those in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for part in parts:  # each is a root of its own, because `predict` calls them one by one
            part.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP splits no other format
            fully_shard(part, mesh=mesh)
        return objective
    # Nothing is broadcast: all processes have the same initial weights, and batch norm uses the statistics of all
    # samples. So no process waits here for another that has refused.
    settings: dict[str, Any] = {_SYNC_BUFFERS: False, "init_sync": False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(objective, **settings)


def mean(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; its gradient is the mean of their gradients."""
    result: Tensor = _Mean.apply(tensor)  # type: ignore[no-untyped-call]
    return result


def gather(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of the processes; each has the same number of rows."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor. If it is sharded, all processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy values that every process has in full into a tensor. Of a sharded tensor each process fills its shard."""
    if isinstance(tensor, DTensor):
        whole = distribute_tensor(
            whole.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements, src_data_rank=None
        )
    tensor.copy_(whole)


def _accelerators() -> list[str]:
    kind = torch.accelerator.current_accelerator()
    if kind is None or not torch.accelerator.is_available():
        return []
    return [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())]


def _kind(device: str) -> str:
    kind = device.partition(":")[0]
    return "cuda" if kind == "gpu" else kind


def _exchange(text: str) -> list[str]:
    texts = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return texts


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return mean(gradient)


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm by the statistics of the samples of all processes.

    `nn.SyncBatchNorm` works on accelerators only. This module runs everywhere, so that tests on a CPU cover the code
    that trains on GPUs. It needs one all-reduce of 2·C numbers in each direction.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        # The running mean is the same in all processes. Without subtracting it, the squares of x would lose the digits
        # that a large mean covers.
        x = x - self.running_mean[:, None, None]
        first, second = mean(torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]))
        var = (second - first.square()).clamp(min=0)
        with torch.no_grad():
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.running_mean += self.momentum * first
            self.running_var += self.momentum * (var * (count / max(count - 1, 1)) - self.running_var)
        factor = self.weight / torch.sqrt(var + self.eps)
        y: Tensor = x * factor[:, None, None] + (self.bias - first * factor)[:, None, None]
        return y


def _normalise_over_all(module: nn.Module) -> None:
    """Replace every `nn.BatchNorm2d` in a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = _BatchNorm(child.num_features, child.eps, child.momentum).to(child.weight)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            _normalise_over_all(child)
