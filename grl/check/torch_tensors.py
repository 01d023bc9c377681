"""Kinds of tensors, devices and threads that a layer meets, and what it keeps in memory.

To add a transformation, write one function and list it in `TRANSFORMATIONS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from grl.check.form import Form, NotApplicableError, WrongError, transformation
from grl.check.reference import COEFF, FIRST, WEIGHTS, X, same
from grl.check.torch_derivatives import derivative, fresh, gradient_of, joined, loss_of, the_x

__all__ = ["TRANSFORMATIONS"]


@transformation("integers")
def _integers(form: Form) -> None:
    x = torch.arange(4)
    y = form.make(COEFF)(x)
    if y.dtype != x.dtype or not torch.equal(y, x):
        raise WrongError(f"integers: expected {x.tolist()} of {x.dtype}, got {y.tolist()} of {y.dtype}")


@transformation("complex")
def _complex(form: Form) -> None:
    x = torch.complex(the_x(), the_x().flip(0))
    y = form.make(COEFF)(x.requires_grad_())
    cotangent = torch.complex(fresh(FIRST), fresh(WEIGHTS))
    gradient = derivative(y, x, cotangent)
    same(gradient, -COEFF * (FIRST + 1j * WEIGHTS))


@transformation("autocast bfloat16")
def _autocast(form: Form) -> None:
    torch.manual_seed(0)
    first, layer = nn.Linear(3, 3), form.make(COEFF)
    gradients = []
    for reverse in (layer, lambda x: x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = reverse(first(the_x()))
        if y.dtype != torch.bfloat16:
            raise WrongError(f"dtype: expected bfloat16, got {y.dtype}")
        gradients.append(derivative(y.float().sum(), first.weight))
    same(gradients[0], -COEFF * gradients[1], "weight gradient", 0.02)


@transformation("GradScaler")
def _grad_scaler(form: Form) -> None:
    parameter = nn.Parameter(the_x())
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(joined(loss_of(form.make(COEFF)))(parameter)).backward()
    scaler.step(optimizer)
    same(parameter.detach(), X + COEFF * FIRST, "parameter after a step")


@transformation("16 bits: λ is not rounded")
def _sixteen_bits(form: Form) -> None:
    ways = [(f"a number {where}", layer) for where, layer in form.ways(COEFF)]
    if form.call is not None:
        ways.append(("a tensor", lambda x: form.reverse(x, torch.tensor(COEFF))))
    for dtype in (torch.bfloat16, torch.float16):
        for kind, layer in ways:
            cotangent = torch.linspace(1, 2, 128).to(dtype)
            expected = (-COEFF * cotangent.float()).to(dtype)
            x = torch.zeros(128, dtype=dtype, requires_grad=True)
            gradient = derivative(layer(x), x, cotangent)
            if not torch.equal(gradient, expected):
                share = (gradient != expected).float().mean().item()
                name = str(dtype).removeprefix("torch.")
                raise WrongError(f"{name} gradient, λ as {kind}: {share:.0%} of the elements are rounded twice")


@transformation("64 bits: λ is not rounded")
def _sixty_four_bits(form: Form) -> None:
    x = fresh(X.astype(np.float64)).requires_grad_()
    cotangent = np.linspace(1, 2, 12).reshape(4, 3)
    gradient = derivative(form.make(COEFF)(x), x, fresh(cotangent))
    same(gradient, -COEFF * cotangent, "float64 gradient", 1e-15)


@transformation("nothing is kept alive")
def _memory(form: Form) -> None:
    saved: list[Tensor] = []

    def see(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    layer = form.make(COEFF)
    x = torch.zeros(1000, requires_grad=True) + 1  # neither the addition nor the sum keeps anything itself
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        y = layer(x)
    kept = max((_elements(tensor) for tensor in (*saved, *_held(y.grad_fn))), default=0)
    if kept >= 1000:
        raise WrongError(f"saved for the backward pass: expected nothing of x's size, got {kept} elements of 1000")
    saved.clear()
    x = torch.zeros(1000, requires_grad=True) + 1
    storage = StorageWeakRef(x.untyped_storage())
    y = layer(x)
    loss = y.sum()
    del x, y
    if loss.requires_grad and not storage.expired():  # by a closure, say
        raise WrongError("memory of x: expected none once x and y are gone, got a reference in the backward pass")


def _elements(tensor: Tensor) -> int:
    """Return how many of its numbers are in memory: one, if a number was expanded to the tensor."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _held(node: Any) -> Iterator[Tensor]:
    """Yield the tensors that the contexts of a graph's Functions hold as attributes."""
    if node is None:
        return
    for value in getattr(node, "__dict__", {}).values():
        yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    for before, _ in node.next_functions:
        yield from _held(before)


@transformation("in-place operation afterwards")
def _in_place(form: Form) -> None:
    x = the_x().requires_grad_()
    y = form.make(COEFF)(x * 1.0)
    y.mul_(2.0)
    gradient = derivative((fresh(WEIGHTS) * y).sum(), x)
    same(gradient, -COEFF * 2.0 * WEIGHTS)


@transformation("λ changed before backward")
def _changed_coefficient(form: Form) -> None:
    coeff = torch.tensor(COEFF)
    x = the_x().requires_grad_()
    y = form.reverse(x, coeff)
    coeff.fill_(5.0)
    gradient = derivative((fresh(FIRST) * y).sum(), x)
    same(gradient, -COEFF * FIRST)


@transformation("no gradient to λ")
def _no_gradient_to_coefficient(form: Form) -> None:
    coeff = torch.tensor(COEFF, requires_grad=True)
    x = the_x().requires_grad_()
    to_coeff = derivative(loss_of(lambda x: form.reverse(x, coeff))(x), coeff)
    if to_coeff.abs().max() > 0:
        raise WrongError(f"gradient of λ: expected none, got {to_coeff}")


@transformation("CUDA")
def _cuda(form: Form) -> None:
    if not torch.cuda.is_available():
        raise NotApplicableError("no CUDA device")
    x = the_x().cuda().requires_grad_()
    gradient = derivative(loss_of(form.make(COEFF))(x), x)
    same(gradient.cpu(), -COEFF * FIRST)


class _Tagged(Tensor):
    pass


@transformation("tensor subclass")
def _subclass(form: Form) -> None:
    x = the_x().as_subclass(_Tagged).requires_grad_()
    y = form.make(COEFF)(x)
    if not isinstance(y, _Tagged):
        raise WrongError(f"type: expected the subclass, got {type(y).__name__}")
    gradient = derivative((fresh(FIRST) * y).sum(), x)
    same(gradient.as_subclass(Tensor), -COEFF * FIRST)


@transformation("DTensor")
def _dtensor(form: Form) -> None:
    import torch.distributed as distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    if not distributed.is_available():
        raise NotApplicableError("torch.distributed is not built in")
    mine = not distributed.is_initialized()
    if mine:
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        x: Any = distribute_tensor(the_x(), init_device_mesh("cpu", (1,)), [Shard(0)]).requires_grad_()
        y = form.make(COEFF)(x)
        if y.placements != x.placements:
            raise WrongError(f"placements: expected {x.placements}, got {y.placements}")
        gradient: Any = derivative(torch.sin(y).sum(), x)
        same(gradient.full_tensor(), -COEFF * np.cos(X))
    finally:
        if mine:
            distributed.destroy_process_group()


@transformation("meta and fake tensors")
def _meta(form: Form) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = form.make(COEFF)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(4, 3, dtype=torch.float16))
    for x in (torch.zeros(4, 3, dtype=torch.float16, device="meta"), fake):
        leaf: Tensor = x.detach().requires_grad_()
        y = layer(leaf).sum()
        if not y.requires_grad:
            raise WrongError("gradient: expected one, got none: x is cut off")
        gradient = derivative(y, leaf)
        if (gradient.shape, gradient.dtype) != (x.shape, x.dtype):
            raise WrongError(f"gradient: expected {x.shape} {x.dtype}, got {gradient.shape} {gradient.dtype}")


@transformation("threads")
def _threads(form: Form) -> None:
    begin = Barrier(4)

    def work(coeff: float) -> None:
        begin.wait()  # all at the same time, each in a thread of its own
        loss = loss_of(form.make(coeff))
        for _ in range(20):
            same(gradient_of(loss), -coeff * FIRST, f"gradient at λ = {coeff:g}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, (0.1, 0.5, 2.0, -1.0)))


TRANSFORMATIONS = (
    _integers,
    _complex,
    _autocast,
    _grad_scaler,
    _sixteen_bits,
    _sixty_four_bits,
    _memory,
    _in_place,
    _changed_coefficient,
    _no_gradient_to_coefficient,
    _cuda,
    _subclass,
    _dtensor,
    _meta,
    _threads,
)
"""The rows of this module, in the order of the table."""
