"""JAX programs that contain the layer.

To add a transformation, write one function and list it in `TRANSFORMATIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grl.arrays import Array as NumpyArray
from grl.check.form import Call, Form, NotApplicableError, WrongError, transformation
from grl.check.jax_derivatives import loss_of, over_coefficients, sample_loss_of, the_x
from grl.check.reference import COEFF, FIRST, SECOND, WEIGHTS, X, same

__all__ = ["TRANSFORMATIONS", "count_traces", "instructions"]


@transformation("jit of grad")
def _jit_grad(form: Form) -> None:
    same(jax.jit(jax.grad(loss_of(form.make(COEFF))))(the_x()), -COEFF * FIRST)


@transformation("grad of jit")
def _grad_jit(form: Form) -> None:
    same(jax.grad(jax.jit(loss_of(form.make(COEFF))))(the_x()), -COEFF * FIRST)


@transformation("jit of vmap of grad")
def _jit_vmap_grad(form: Form) -> None:
    program = jax.jit(jax.vmap(jax.grad(sample_loss_of(form.make(COEFF)))))
    same(program(the_x(), jnp.asarray(WEIGHTS)), -COEFF * FIRST)


@transformation("jit of vmap over λ")
def _jit_vmap_coeff(form: Form) -> None:
    same(over_coefficients(form, jax.jit), -np.array([0.1, -2.0])[:, None, None] * FIRST)


@transformation("jit of jvp")
def _jit_jvp(form: Form) -> None:
    layer = form.make(COEFF)
    same(
        jax.jit(lambda x, t: jax.jvp(layer, (x,), (t,))[1])(the_x(), jnp.asarray(WEIGHTS)), -COEFF * WEIGHTS, "tangent"
    )


@transformation("jit of hessian")
def _jit_hessian(form: Form) -> None:
    found = jax.jit(jax.hessian(loss_of(form.make(COEFF))))(the_x()).reshape(12, 12)
    same(found, COEFF**2 * np.diag(SECOND.ravel()), "Hessian")


@transformation("jit, ramp of λ")
def _ramp(form: Form) -> None:
    traces = count_traces(form, np.linspace(-1, 1, 1000).tolist())
    if traces != 1:
        raise WrongError(f"traces: expected 1, got {traces} for 1,000 values of λ")


def count_traces(form: Form, coeffs: Sequence[float]) -> int:
    """Return how many times `jax.jit` traces the layer when it is called with these values of λ in turn.

    Raises:
        NotApplicableError: λ is no argument of the call.
        WrongError: the last gradient is wrong.
    """
    form.reverse(the_x(), COEFF)  # raises NotApplicableError if there is no such argument
    traces = 0

    @jax.jit
    def gradient(x: Array, coeff: Array) -> Array:
        nonlocal traces
        traces += 1
        found: Array = jax.grad(loss_of(lambda x: form.reverse(x, coeff)))(x)
        return found

    x = the_x()
    for coeff in coeffs:
        found = gradient(x, coeff)
    same(found, -coeffs[-1] * FIRST)
    return traces


@transformation("jit, forward: no instruction")
def _forward_cost(form: Form) -> None:
    found = instructions(form.make(COEFF), jnp.zeros(1000))
    if found:
        raise WrongError(f"instructions of the optimised program: expected none, got {', '.join(found)}")


@transformation("jit, backward: one multiply")
def _backward_cost(form: Form) -> None:
    layer = form.make(COEFF)
    found = instructions(lambda x, g: jax.vjp(layer, x)[1](g)[0], jnp.zeros(1000), jnp.ones(1000))
    if found != ["multiply"]:
        raise WrongError(
            f"instructions of the optimised program: expected one multiply, got {', '.join(found) or 'none'}"
        )


_INSTRUCTION = re.compile(r"= (?P<type>\S+) (?P<name>[a-z][a-z0-9-]*)\(")
# These move or name existing values. A broadcast expands the number λ to the size of the gradient, within the fusion.
_MOVES = {"parameter", "constant", "copy", "tuple", "get-tuple-element", "bitcast", "fusion", "call", "broadcast"}


def instructions(function: Call, x: Array, *further: Array) -> list[str]:
    """Return the instructions on arrays of the size of the vector x in XLA's optimised program of function(x, …).

    Instructions that compute nothing are left out, including the broadcast of λ to the size of the gradient.
    """
    text = jax.jit(function).lower(x, *further).compile().as_text() or ""
    found = [match["name"] for match in _INSTRUCTION.finditer(text) if f"[{x.size}]" in match["type"]]
    return [name for name in found if name not in _MOVES]


@transformation("disable_jit")
def _disable_jit(form: Form) -> None:
    with jax.disable_jit():
        same(jax.grad(jax.jit(loss_of(form.make(COEFF))))(the_x()), -COEFF * FIRST)


@transformation("remat")
def _remat(form: Form) -> None:
    loss = jax.checkpoint(loss_of(form.make(COEFF)))
    same(jax.grad(loss)(the_x()), -COEFF * FIRST)
    same(jax.jit(jax.grad(loss))(the_x()), -COEFF * FIRST, "gradient under jit")


@transformation("scan")
def _scan(form: Form) -> None:
    layer = form.make(COEFF)

    def loss(x: Array) -> Array:
        last, _ = lax.scan(lambda carry, _: (jnp.sin(layer(carry)), None), x, length=3)
        return (jnp.asarray(WEIGHTS) * last).sum()

    same(jax.grad(loss)(the_x()), (-COEFF) ** 3 * _sines())


def _sines() -> NumpyArray:
    """The derivative of Σ w·sin(sin(sin(x)))."""
    return WEIGHTS * np.cos(X) * np.cos(np.sin(X)) * np.cos(np.sin(np.sin(X)))


@transformation("scan over λ")
def _scan_coeff(form: Form) -> None:
    form.reverse(the_x(), COEFF)  # raises NotApplicableError if there is no such argument

    def loss(x: Array) -> Array:
        coeffs = jnp.asarray([0.1, -2.0, 0.5])
        last, _ = lax.scan(lambda carry, coeff: (jnp.sin(form.reverse(carry, coeff)), None), x, coeffs)
        return (jnp.asarray(WEIGHTS) * last).sum()

    same(jax.grad(loss)(the_x()), 0.1 * _sines())


@transformation("cond")
def _cond(form: Form) -> None:
    layer = form.make(COEFF)
    loss = lambda x, reverse: lax.cond(reverse, loss_of(layer), loss_of(lambda x: x), x)
    gradient = jax.jit(jax.grad(loss))
    same(gradient(the_x(), True), -COEFF * FIRST, "gradient of the branch with the layer")
    same(gradient(the_x(), False), FIRST, "gradient of the branch without")


@transformation("fori_loop")
def _fori(form: Form) -> None:
    layer = form.make(COEFF)
    loss = lambda x: (jnp.asarray(WEIGHTS) * lax.fori_loop(0, 3, lambda _, x: jnp.sin(layer(x)), x)).sum()
    same(jax.grad(loss)(the_x()), (-COEFF) ** 3 * _sines())


@transformation("while_loop, grad inside")
def _while(form: Form) -> None:
    gradient = jax.grad(loss_of(form.make(COEFF)))

    def ascend(x: Array) -> Array:
        step = lambda state: (state[0] + 1, state[1] - 0.1 * gradient(state[1]))
        return lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1]

    expected = X.copy()
    for _ in range(3):
        expected += 0.1 * COEFF * WEIGHTS * np.cos(expected)
    same(jax.jit(ascend)(the_x()), expected, "x after three steps up the loss")


@transformation("while_loop, jvp of it")
def _while_jvp(form: Form) -> None:
    layer = form.make(COEFF)

    def thrice(x: Array) -> Array:
        step = lambda state: (state[0] + 1, jnp.sin(layer(state[1])))
        return lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1]

    same(jax.jvp(thrice, (the_x(),), (jnp.asarray(WEIGHTS),))[1], (-COEFF) ** 3 * _sines(), "tangent")


def _mesh() -> Mesh:
    """Return a mesh of four or two of the devices: as many as divide the four rows of x."""
    devices = jax.devices()
    if len(devices) == 1:
        raise NotApplicableError("one device: nothing is dealt out")
    return Mesh(np.array(devices[: 4 if len(devices) >= 4 else min(len(devices), 2)]), ("data",))


@transformation("shard_map")
def _shard_map(form: Form) -> None:
    rows = PartitionSpec("data")
    layer = form.make(COEFF)
    sharded = partial(jax.shard_map, mesh=_mesh(), out_specs=rows)
    inside = sharded(jax.grad(sample_loss_of(layer)), in_specs=(rows, rows))
    same(inside(the_x(), jnp.asarray(WEIGHTS)), -COEFF * FIRST, "gradient inside of shard_map")
    same(jax.grad(loss_of(sharded(layer, in_specs=rows)))(the_x()), -COEFF * FIRST, "gradient through shard_map")


@transformation("sharded arrays: no collective")
def _sharded(form: Form) -> None:
    layer = form.make(COEFF)
    sharding = NamedSharding(_mesh(), PartitionSpec("data"))
    x, g = jax.device_put((X, FIRST), sharding)
    pull_back = jax.jit(lambda x, g: jax.vjp(layer, x)[1](g)[0])
    gradient = pull_back(x, g)
    same(gradient, -COEFF * FIRST)
    text = pull_back.lower(x, g).compile().as_text() or ""
    collectives = set(re.findall(r"(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?=\()", text))
    if collectives:
        raise WrongError(f"collectives: expected none, got {', '.join(sorted(collectives))}")
    if not gradient.sharding.is_equivalent_to(sharding, 2):
        raise WrongError(f"sharding: expected {sharding.spec}, got {gradient.sharding}")


@transformation("donation")
def _donation(form: Form) -> None:
    gradient = jax.jit(jax.grad(loss_of(form.make(COEFF))), donate_argnums=0)
    same(gradient(jnp.array(X)), -COEFF * FIRST)


@transformation("eval_shape")
def _eval_shape(form: Form) -> None:
    layer, x = form.make(COEFF), jax.ShapeDtypeStruct((4, 3), jnp.float16)
    gradient = jax.eval_shape(jax.grad(lambda x: layer(x).sum()), x)
    if (gradient.shape, gradient.dtype) != (x.shape, x.dtype):
        raise WrongError(f"gradient: expected {x.shape} {x.dtype}, got {gradient.shape} {gradient.dtype}")


@transformation("export")
def _export(form: Form) -> None:
    same(jax.grad(_exported(form, (4, 3)).call)(the_x()), -COEFF * np.cos(X))


@transformation("export, symbolic shapes")
def _export_symbolic(form: Form) -> None:
    call = _exported(form, export.symbolic_shape("rows, 3")).call
    for size in (4, 3):
        same(jax.grad(call)(the_x()[:size]), -COEFF * np.cos(X[:size]), f"gradient at {size} rows")


@transformation("export, serialised")
def _export_serialised(form: Form) -> None:
    if find_spec("flatbuffers") is None:
        raise NotApplicableError("flatbuffers is not installed")
    program = export.deserialize(_exported(form, (4, 3)).serialize(vjp_order=1))
    same(jax.grad(program.call)(the_x()), -COEFF * np.cos(X))


def _exported(form: Form, shape: Any) -> export.Exported:
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    layer = form.make(COEFF)
    return export.export(jax.jit(lambda x: jnp.sin(layer(x)).sum()))(x)


TRANSFORMATIONS = (
    _jit_grad,
    _grad_jit,
    _jit_vmap_grad,
    _jit_vmap_coeff,
    _jit_jvp,
    _jit_hessian,
    _ramp,
    _forward_cost,
    _backward_cost,
    _disable_jit,
    _remat,
    _scan,
    _scan_coeff,
    _cond,
    _fori,
    _while,
    _while_jvp,
    _shard_map,
    _sharded,
    _donation,
    _eval_shape,
    _export,
    _export_symbolic,
    _export_serialised,
)
"""The rows of this module, in the order of the table."""
