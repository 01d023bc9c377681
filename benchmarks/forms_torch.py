"""The PyTorch forms: ours, the peers, the floors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from benchmarks.form import TimedForm, WrongResultError, shape_of
from benchmarks.inputs import base_block
from benchmarks.settings import COEFF
from benchmarks.timing import Call, CudaClock, HostClock
from grl.check.peers import peer_forms
from grl.torch_impl import GRL, GradientReverseFunction, gradient_reversal

__all__ = ["TorchBackend", "forward_backward"]

Inputs = Sequence[tuple[Tensor, Tensor]]


class _Copying(Function):
    """The form of many repositories: `input * 1.0`, because autograd treats a returned input as a special case."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, coeff: Any) -> Tensor:
        ctx.coeff = coeff
        return input * 1.0

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return -ctx.coeff * grad_output, None


class BareModule(nn.Module):
    """The minimum cost of an `nn.Module` call."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x


def _bare_apply(coeff: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The minimum work of a rule written in Python: no context, no check, λ a constant, the C++ apply."""
    factor = -coeff

    class Bare(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return cotangent * factor

    return super(Function, Bare).apply, ()


def _bare_module(coeff: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The minimum work of a layer: the same rule in the `forward` of an `nn.Module`."""
    apply, further = _bare_apply(coeff)

    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return apply(x)

    return Bare(), further


def _revgrad(coeff: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    import pytorch_revgrad
    from pytorch_revgrad.functional import revgrad

    return (revgrad, (coeff,)) if isinstance(coeff, Tensor) else (pytorch_revgrad.RevGrad(alpha=coeff), ())


def _torch_gradient_reversal(coeff: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    import gradient_reversal as peer

    return peer.gradient_reversal, (coeff,)


def _compiled(function: Callable[..., Any], *further: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return torch.compile(function, fullgraph=True), further


_PEERS = {form.name: form for form in peer_forms("torch")}


def _article_function(coeff: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    function = _PEERS["article's Function"].call
    assert function is not None
    return function, (coeff,)


def _one(coeff: Any) -> float:
    return 1.0


FORMS = (
    TimedForm("gradient_reversal", "ours", lambda c: (gradient_reversal, (c,)), headline=True),
    TimedForm("GradientReverseFunction", "ours", lambda c: (GradientReverseFunction.apply, (c,))),
    TimedForm("GRL", "ours", lambda c: (GRL(c), ()), headline=True),
    TimedForm(
        "gradient_reversal, compiled", "ours", lambda c: _compiled(lambda x, k: gradient_reversal(x, k), c), "compiled"
    ),
    TimedForm("gradient_reversal, CUDA graph", "ours", lambda c: (gradient_reversal, (c,)), "cuda graph", ("both",)),
    TimedForm("article Function", "peer", _article_function, headline=True),
    TimedForm("article Module", "peer", lambda c: (_PEERS["article's Module"].make(c), ())),
    TimedForm("input * 1.0", "peer", lambda c: (_Copying.apply, (c,))),
    TimedForm("pytorch-revgrad", "peer", _revgrad),
    TimedForm("torch-gradient-reversal", "peer", _torch_gradient_reversal),
    TimedForm("identity", "floor", lambda c: (lambda x: x.view_as(x), ()), factor=_one, headline=True),
    TimedForm("identity, compiled", "floor", lambda c: _compiled(lambda x: x.view_as(x)), "compiled", factor=_one),
    TimedForm("bare apply", "floor", _bare_apply, headline=True),
    TimedForm("bare nn.Module", "floor", lambda c: (BareModule(), ()), measures=("forward",), factor=_one),
    TimedForm("bare apply in an nn.Module", "floor", _bare_module, measures=("forward",)),
    TimedForm(
        "multiply",
        "floor",
        lambda c: (operator.mul, (-c,)),
        measures=("backward",),
        direct=True,
        headline=True,
    ),
    TimedForm(
        "copy",
        "floor",
        lambda c: (torch.Tensor.copy_, ()),
        measures=("backward",),
        factor=_one,
        direct=True,
        headline=True,
    ),
)


def forward_backward(function: Callable[..., Any], further: tuple[Any, ...], x: Tensor, g: Tensor) -> Any:
    """Call the layer and pull g back through it."""
    return torch.autograd.grad(function(x, *further), x, g)


class TorchBackend:
    """PyTorch on one device.

    Raises:
        RuntimeError: there is no such device.
    """

    name = "torch"

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.device = torch.device(device)
        if self.on_gpu and not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")

    @property
    def forms(self) -> Sequence[TimedForm]:
        """Ours, peers and floors."""
        return [form for form in FORMS if self.on_gpu or form.mode != "cuda graph"]

    def start(self) -> None:
        """Forget what earlier groups compiled: a form's second shape would be compiled for any shape."""
        torch.compiler.reset()

    def inputs(self, size: int, dtype: str, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return pairs (x, g); x asks for a gradient."""
        kind = getattr(torch, dtype)
        elements = size // kind.itemsize

        def array(seed: int) -> Tensor:
            block = torch.from_numpy(base_block(elements, seed)).to(self.device, kind)
            return block.repeat(elements // len(block)).reshape(shape_of(elements))

        return [(array(2 * i).requires_grad_(), array(2 * i + 1)) for i in range(count)]

    def coefficient(self, kind: str, rows: int) -> Any:
        """Return λ."""
        if kind == "number":
            return COEFF
        if kind == "tensor":
            return torch.tensor(COEFF, device=self.device)
        return torch.linspace(0.5, 1.5, rows, device=self.device)

    def calls(self, form: TimedForm, inputs: Inputs, coeff: Any, measure: str) -> list[Call]:
        """Return the call, on a GPU by both clocks where anything runs on the device."""
        function, arguments = self._call(form, inputs, coeff, measure)
        if not self.on_gpu:
            return [Call(function, arguments, HostClock())]
        clocks = [CudaClock(queued=False)] + ([CudaClock(queued=True)] if measure != "forward" else [])
        return [Call(function, arguments, clock) for clock in clocks]

    def _call(self, form: TimedForm, inputs: Inputs, coeff: Any, measure: str) -> tuple[Any, list[tuple[Any, ...]]]:
        if form.direct:
            shaped = coeff[:, None] if isinstance(coeff, Tensor) and coeff.ndim else coeff
            function, further = form.make(shaped)
            if function is torch.Tensor.copy_:
                target = torch.full_like(inputs[0][1], torch.nan)
                return function, [(target, g) for _, g in inputs]
            return function, [(g, *further) for _, g in inputs]
        if form.name == "bare apply" and isinstance(coeff, Tensor) and coeff.ndim:
            coeff = coeff[:, None]
        function, further = form.make(coeff)
        if form.mode == "cuda graph":
            return _replay, [_capture(function, further, x, g) for x, g in inputs]
        if measure == "forward":
            return function, [(x, *further) for x, _ in inputs]
        if measure == "backward":
            return torch.autograd.grad, [(function(x, *further), x, g, True) for x, g in inputs]
        return forward_backward, [(function, further, x, g) for x, g in inputs]

    def check(self, form: TimedForm, inputs: Inputs, coeff: Any, measure: str, call: Call) -> None:
        """Make every call of the ring on poisoned memory and compare its result with the input, or with −λ·g."""
        factor = form.factor(coeff[:, None] if isinstance(coeff, Tensor) and coeff.ndim else coeff)
        for (x, g), arguments in zip(inputs, call.arguments, strict=True):
            poison = [torch.full_like(g, torch.nan) for _ in range(3)]
            del poison
            if form.mode == "cuda graph":
                arguments[1].fill_(torch.nan)
            result = call.function(*arguments)
            result = result[0] if isinstance(result, tuple) else result
            if result.shape != x.shape or result.dtype != x.dtype:
                raise WrongResultError(f"{measure}: {result.dtype} of shape {tuple(result.shape)}")
            _compare(result.detach(), x.detach() if measure == "forward" else g, factor, measure)

    def floor(self, form: TimedForm, measure: str) -> tuple[str, str] | None:
        """Return the floor: the identity for a forward pass, one multiply for anything with a gradient."""
        if form.name in ("multiply", "copy") or (form.name == "identity" and measure == "forward"):
            return None
        return ("identity", "forward") if measure == "forward" else ("multiply", "backward")


def _compare(result: Tensor, source: Tensor, factor: Any, measure: str) -> None:
    if measure == "forward":
        if not torch.equal(result, source):
            raise WrongResultError("forward: the values are not those of x")
        return
    expected = source.float() * factor
    bound = 2 * torch.finfo(result.dtype).eps * expected.abs() + torch.finfo(result.dtype).tiny
    wrong = ~((result.float() - expected).abs() <= bound)  # NaN is wrong
    if wrong.any():
        raise WrongResultError(f"{measure}: {wrong.float().mean().item():.1%} of the gradient is wrong")


def _capture(function: Callable[..., Any], further: tuple[Any, ...], x: Tensor, g: Tensor) -> tuple[Any, Tensor]:
    """Return a CUDA graph of forward and backward, and the gradient that each replay writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward_backward(function, further, x, g)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (gradient,) = forward_backward(function, further, x, g)
    return graph, gradient


def _replay(graph: Any, gradient: Tensor) -> Tensor:
    graph.replay()
    return gradient
