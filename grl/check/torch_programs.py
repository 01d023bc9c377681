"""PyTorch programs that contain the layer.

To add a transformation, write one function and list it in `TRANSFORMATIONS`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from grl.check.form import Call, Form, NotApplicableError, WrongError, transformation
from grl.check.reference import COEFF, FIRST, SECOND, WEIGHTS, X, same
from grl.check.torch_derivatives import (
    derivative,
    fresh,
    gradient_of,
    joined,
    loss_of,
    over_coefficients,
    sample_loss_of,
    the_x,
)

__all__ = ["TRANSFORMATIONS", "count_graphs", "count_kernels"]


def _compiled(function: Call, backend: str | Call = "aot_eager", *, dynamic: bool | None = None) -> Call:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)


@transformation("compile")
def _compile(form: Form) -> None:
    same(gradient_of(_compiled(loss_of(form.make(COEFF)))), -COEFF * FIRST)


@transformation("compile of func.grad")
def _compile_grad(form: Form) -> None:
    same(_compiled(grad(loss_of(form.make(COEFF))))(the_x()), -COEFF * FIRST)


@transformation("compile of func.vjp")
def _compile_vjp(form: Form) -> None:
    layer = form.make(COEFF)
    same(_compiled(lambda x, g: vjp(layer, x)[1](g)[0])(the_x(), fresh(FIRST)), -COEFF * FIRST)


@transformation("compile of func.vmap of grad")
def _compile_vmap_grad(form: Form) -> None:
    program = _compiled(vmap(grad(sample_loss_of(form.make(COEFF)))))
    same(program(the_x(), fresh(WEIGHTS)), -COEFF * FIRST)


@transformation("compile of func.vmap over λ")
def _compile_vmap_coeff(form: Form) -> None:
    same(over_coefficients(form, _compiled), -np.array([0.1, -2.0])[:, None, None] * FIRST)


@transformation("compile of func.jacrev")
def _compile_jacrev(form: Form) -> None:
    layer = form.make(COEFF)
    jacobian = _compiled(jacrev(lambda x: torch.sin(layer(x))))(the_x()).reshape(12, 12)
    same(jacobian, -COEFF * np.diag(np.cos(X).ravel()), "Jacobian")


@transformation("compile of func.jacfwd")
def _compile_jacfwd(form: Form) -> None:
    layer = form.make(COEFF)
    jacobian = _compiled(jacfwd(lambda x: torch.sin(layer(x))))(the_x()).reshape(12, 12)
    same(jacobian, -COEFF * np.diag(np.cos(X).ravel()), "Jacobian")


@transformation("compile of func.jvp")
def _compile_jvp(form: Form) -> None:
    layer = form.make(COEFF)
    tangent = _compiled(lambda x, t: jvp(layer, (x,), (t,))[1])(the_x(), fresh(WEIGHTS))
    same(tangent, -COEFF * WEIGHTS, "tangent")


@transformation("compile of func.hessian")
def _compile_hessian(form: Form) -> None:
    found = _compiled(hessian(loss_of(form.make(COEFF))))(the_x()).reshape(12, 12)
    same(found, COEFF**2 * np.diag(SECOND.ravel()), "Hessian")


@transformation("compile, autograd.grad inside")
def _compile_autograd_grad(form: Form) -> None:
    loss = joined(loss_of(form.make(COEFF)))
    with torch._dynamo.config.patch(trace_autograd_ops=True):  # off by default up to torch 2.13
        program = _compiled(lambda x: torch.autograd.grad(loss(x), x)[0])
        same(program(the_x().requires_grad_()).detach(), -COEFF * FIRST)


@transformation("compile, dynamic shapes")
def _compile_dynamic(form: Form) -> None:
    layer = form.make(COEFF)
    program = _compiled(lambda x: torch.sin(layer(x)).sum(), dynamic=True)
    for size in (4, 3, 2):
        x = X[:size]
        same(gradient_of(program, fresh(x)), -COEFF * np.cos(x), f"gradient at {size} rows")


@transformation("compile, ramp of λ")
def _compile_ramp(form: Form) -> None:
    graphs = count_graphs(form, np.linspace(-1, 1, 12).tolist())
    if graphs > 2:
        raise WrongError(f"graphs: expected at most 2, got {graphs} for 12 values of λ")


def count_graphs(form: Form, coeffs: Sequence[float]) -> int:
    """Return how many graphs `torch.compile` makes when the layer is called with these values of λ in turn.

    Raises:
        NotApplicableError: λ is no argument of the call.
        WrongError: a gradient is wrong.
    """
    form.reverse(the_x(), COEFF)  # raises NotApplicableError if there is no such argument
    counter = CompileCounterWithBackend("aot_eager")
    loss = _compiled(lambda x, coeff: loss_of(lambda x: form.reverse(x, coeff))(x), counter)
    with torch._dynamo.config.patch(recompile_limit=8):  # the default: a layer with one graph per λ fails at the ninth
        for coeff in coeffs:
            same(gradient_of(partial(loss, coeff=coeff)), -coeff * FIRST, f"gradient at λ = {coeff:g}")
    return int(counter.frame_count)


@transformation("func.grad of a compiled function")
def _grad_of_compiled(form: Form) -> None:
    torch._dynamo.reset()
    same(grad(torch.compile(loss_of(form.make(COEFF)), backend="aot_eager"))(the_x()), -COEFF * FIRST)


@transformation("compile, Inductor: no kernel more")
def _kernels(form: Form) -> None:
    expected, got = count_kernels(None), count_kernels(form)
    if got > expected:
        raise WrongError(f"kernels: expected {expected}, as with an identity in its place, got {got}")


@cache
def count_kernels(form: Form | None) -> int:
    """Return how many kernels Inductor generates for a small net, forward and backward.

    Args:
        form: the layer in it; None: an identity.
    """
    from torch._inductor import metrics

    layer = (lambda x: x) if form is None else form.make(COEFF)
    metrics.reset()
    # A cached program generates no kernels to count. The cache of their machine code stays on.
    with torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        gradient = gradient_of(_compiled(lambda x: loss_of(layer)(torch.tanh(x)), "inductor"))
    factor = 1.0 if form is None else -COEFF
    same(gradient, factor * WEIGHTS * np.cos(np.tanh(X)) * (1 - np.tanh(X) ** 2))
    return int(metrics.generated_kernel_count)


@transformation("export")
def _export(form: Form) -> None:
    program = torch.export.export(_Network(form), (the_x(),))
    same(gradient_of(lambda x: program.module()(x)), -COEFF * FIRST)


@transformation("export, decomposed and loaded")
def _export_decomposed(form: Form) -> None:
    file = io.BytesIO()
    torch.export.save(torch.export.export(_Network(form), (the_x(),)).run_decompositions(), file)
    file.seek(0)
    program = torch.export.load(file)
    same(gradient_of(lambda x: program.module()(x)), -COEFF * FIRST)


@transformation("ONNX")
def _onnx(form: Form) -> None:
    try:
        import onnx.reference
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise NotApplicableError(f"{error.name} is not installed") from error
    program = torch.onnx.export(_Network(form), (the_x(),), dynamo=True, verbose=False)
    assert program is not None
    session = onnx.reference.ReferenceEvaluator(program.model_proto)
    (value,) = session.run(None, {session.input_names[0]: X})
    same(value, (WEIGHTS * np.sin(X)).sum(), "value")


@transformation("jit.trace")
def _jit_trace(form: Form) -> None:
    same(gradient_of(torch.jit.trace(_Network(form), the_x())), -COEFF * FIRST)


@transformation("fx.symbolic_trace")
def _symbolic_trace(form: Form) -> None:
    same(gradient_of(torch.fx.symbolic_trace(_Network(form))), -COEFF * FIRST)


class _Network(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.layer = form.make(COEFF)
        self.weights = nn.Buffer(fresh(WEIGHTS))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weights * torch.sin(self.layer(x))).sum()


@transformation("CUDA graph")
def _cuda_graph(form: Form) -> None:
    if not torch.cuda.is_available():
        raise NotApplicableError("no CUDA device")
    layer, x = form.make(COEFF), the_x().cuda().requires_grad_()
    function: Any = torch.cuda.make_graphed_callables(lambda x: torch.sin(layer(x)).sum(), (x,))
    for _ in range(2):
        gradient = derivative(function(x), x)
        same(gradient.cpu(), -COEFF * np.cos(X))


TRANSFORMATIONS = (
    _compile,
    _compile_grad,
    _compile_vjp,
    _compile_vmap_grad,
    _compile_vmap_coeff,
    _compile_jacrev,
    _compile_jacfwd,
    _compile_jvp,
    _compile_hessian,
    _compile_autograd_grad,
    _compile_dynamic,
    _compile_ramp,
    _grad_of_compiled,
    _kernels,
    _export,
    _export_decomposed,
    _onnx,
    _jit_trace,
    _symbolic_trace,
    _cuda_graph,
)
"""The rows of this module, in the order of the table."""
