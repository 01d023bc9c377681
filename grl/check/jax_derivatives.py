"""JAX's derivatives of a layer, and what the backward pass keeps in memory.

To add a transformation, write one function and list it in `TRANSFORMATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from grl.check.form import Call, Form, Layer, WrongError, transformation
from grl.check.reference import BITS, COEFF, FIRST, SECOND, WEIGHTS, X, same, same_bits

__all__ = ["TRANSFORMATIONS"]


def the_x() -> Array:
    return jnp.asarray(X)


def loss_of(layer: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: (jnp.asarray(WEIGHTS) * jnp.sin(layer(x))).sum()


def sample_loss_of(layer: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda x, weights: (weights * jnp.sin(layer(x))).sum()


@transformation("eager")
def _eager(form: Form) -> None:
    layer, x = form.make(COEFF), the_x()
    if layer(x).dtype != x.dtype:
        raise WrongError(f"dtype: expected {x.dtype}, got {layer(x).dtype}")
    same(layer(x), X, "value")
    same(jax.grad(loss_of(layer))(the_x()), -COEFF * FIRST)


@transformation("beside the layer: f(x) + g(R(x))")
def _beside(form: Form) -> None:
    layer = form.make(COEFF)

    def loss(x: Array) -> Array:
        features = x * 1.0
        y: Array = layer(features) + features
        return (jnp.asarray(WEIGHTS) * y).sum()

    same(jax.grad(loss)(the_x()), (1 - COEFF) * WEIGHTS)


@transformation("λ = 0, λ < 0")
def _signs(form: Form) -> None:
    for coeff in (0.0, -2.0):
        for where, layer in form.ways(coeff):
            gradient = jax.grad(loss_of(layer))(the_x())
            same(gradient, -coeff * FIRST, f"gradient at λ = {coeff:g}, given {where}")


@transformation("forward keeps the bits")
def _bits(form: Form) -> None:
    for what, coeff in (("value", COEFF), ("value at λ = 0", 0.0)):
        x, layer = jnp.asarray(BITS.view(np.float32)), form.make(coeff)
        same_bits(np.asarray(layer(x)), what)
        same_bits(np.asarray(jax.jit(layer)(x)), f"{what} under jit")
        same_bits(np.asarray(jax.vjp(layer, x)[0]), f"{what} under vjp")


@transformation("integers")
def _integers(form: Form) -> None:
    x = jnp.arange(4)
    y, pullback = jax.vjp(form.make(COEFF), x)
    if y.dtype != x.dtype or y.tolist() != x.tolist():
        raise WrongError(f"integers: expected {x.tolist()} of {x.dtype}, got {y.tolist()} of {y.dtype}")
    (gradient,) = pullback(np.zeros(4, jax.dtypes.float0))
    if gradient.dtype != jax.dtypes.float0:
        raise WrongError(f"gradient of integers: expected float0, got {gradient.dtype}")


@transformation("complex")
def _complex(form: Form) -> None:
    _, pullback = jax.vjp(form.make(COEFF), lax.complex(the_x(), the_x()[::-1]))
    (gradient,) = pullback(lax.complex(jnp.asarray(FIRST), jnp.asarray(WEIGHTS)))
    same(gradient, -COEFF * (FIRST + 1j * WEIGHTS))


@transformation("double backward")
def _double_backward(form: Form) -> None:
    first = jax.grad(loss_of(form.make(COEFF)))
    same(jax.grad(lambda x: first(x).sum())(the_x()), COEFF**2 * SECOND, "second derivative")


@transformation("vjp")
def _vjp(form: Form) -> None:
    value, pullback = jax.vjp(form.make(COEFF), the_x())
    same(value, X, "value")
    same(pullback(jnp.asarray(FIRST))[0], -COEFF * FIRST)


@transformation("vmap of grad")
def _vmap_grad(form: Form) -> None:
    same(jax.vmap(jax.grad(sample_loss_of(form.make(COEFF))))(the_x(), jnp.asarray(WEIGHTS)), -COEFF * FIRST)


@transformation("vmap over λ")
def _vmap_coeff(form: Form) -> None:
    same(over_coefficients(form, lambda f: f), -np.array([0.1, -2.0])[:, None, None] * FIRST)


def over_coefficients(form: Form, compiled: Call) -> Array:
    form.reverse(the_x(), COEFF)  # raises NotApplicableError if there is no such argument
    per_coeff = jax.vmap(lambda c: jax.grad(loss_of(lambda x: form.reverse(x, c)))(the_x()))
    gradients: Array = compiled(per_coeff)(jnp.asarray([0.1, -2.0]))
    return gradients


@transformation("grad of vmap over λ")
def _grad_vmap_coeff(form: Form) -> None:
    form.reverse(the_x(), COEFF)  # raises NotApplicableError if there is no such argument
    coeffs, scales = jnp.asarray([0.1, -2.0]), jnp.asarray([1.0, 3.0])

    def loss(x: Array) -> Array:
        per_coeff = jax.vmap(lambda c: form.reverse(x, c))(coeffs)
        return (scales[:, None, None] * jnp.asarray(WEIGHTS) * jnp.sin(per_coeff)).sum()

    same(jax.grad(loss)(the_x()), (2.0 * 3.0 - 0.1) * FIRST)


@transformation("per-sample λ")
def _per_sample(form: Form) -> None:
    for rows in (3, 4):  # square first: there a λ along the wrong axis fits, and gives a wrong gradient
        coeffs, weights = jnp.asarray([0.1, -2.0, 0.0, 1.0])[:rows], jnp.asarray(WEIGHTS[:rows])
        loss = sample_loss_of(partial(form.reverse, coeff=coeffs))
        gradient = jax.grad(loss)(the_x()[:rows], weights)
        same(gradient, -np.asarray(coeffs)[:, None] * FIRST[:rows], f"gradient of {rows} samples of 3")


def _jacobian(form: Form, derive: Call) -> None:
    layer = form.make(COEFF)
    jacobian = derive(lambda x: jnp.sin(layer(x)))(the_x()).reshape(12, 12)
    same(jacobian, -COEFF * np.diag(np.cos(X).ravel()), "Jacobian")


@transformation("jacrev")
def _jacrev(form: Form) -> None:
    _jacobian(form, jax.jacrev)


@transformation("jacfwd")
def _jacfwd(form: Form) -> None:
    _jacobian(form, jax.jacfwd)


@transformation("jvp")
def _jvp(form: Form) -> None:
    value, tangent = jax.jvp(form.make(COEFF), (the_x(),), (jnp.asarray(WEIGHTS),))
    same(value, X, "value")
    same(tangent, -COEFF * WEIGHTS, "tangent")


@transformation("linearize")
def _linearize(form: Form) -> None:
    value, push = jax.linearize(form.make(COEFF), the_x())
    same(value, X, "value")
    same(push(jnp.asarray(WEIGHTS)), -COEFF * WEIGHTS, "tangent")


@transformation("linear_transpose of linearize")
def _transpose_linearized(form: Form) -> None:
    _, push = jax.linearize(form.make(COEFF), the_x())
    same(jax.linear_transpose(push, the_x())(jnp.asarray(FIRST))[0], -COEFF * FIRST)


@transformation("linear_transpose")
def _transpose(form: Form) -> None:
    same(jax.linear_transpose(form.make(COEFF), the_x())(jnp.asarray(FIRST))[0], -COEFF * FIRST)


@transformation("hessian")
def _hessian(form: Form) -> None:
    found = jax.hessian(loss_of(form.make(COEFF)))(the_x()).reshape(12, 12)
    same(found, COEFF**2 * np.diag(SECOND.ravel()), "Hessian")


@transformation("hvp, forward over reverse")
def _hvp_forward(form: Form) -> None:
    _, product = jax.jvp(jax.grad(loss_of(form.make(COEFF))), (the_x(),), (jnp.asarray(WEIGHTS),))
    same(product, COEFF**2 * SECOND * WEIGHTS, "Hessian-vector product")


@transformation("hvp, reverse over reverse")
def _hvp_reverse(form: Form) -> None:
    first = jax.grad(loss_of(form.make(COEFF)))
    product = jax.grad(lambda x: (first(x) * jnp.asarray(WEIGHTS)).sum())(the_x())
    same(product, COEFF**2 * SECOND * WEIGHTS, "Hessian-vector product")


@transformation("hvp, reverse over forward")
def _hvp_reverse_forward(form: Form) -> None:
    loss = loss_of(form.make(COEFF))
    product = jax.grad(lambda x: jax.jvp(loss, (x,), (jnp.asarray(WEIGHTS),))[1])(the_x())
    same(product, COEFF**2 * SECOND * WEIGHTS, "Hessian-vector product")


@transformation("per-sample gradients of a model")
def _per_sample_gradients(form: Form) -> None:
    weights = jnp.asarray(np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3))

    def gradients(layer: Layer) -> Array:
        loss = lambda weights, x: jnp.sin(layer(x @ weights)).sum()
        with jax.default_matmul_precision("highest"):  # a GPU would round what it multiplies
            found: Array = jax.vmap(jax.grad(loss), (None, 0))(weights, the_x())
        return found

    same(gradients(form.make(COEFF)), -COEFF * gradients(lambda x: x), "weight gradients")


@transformation("16 bits: λ is not rounded")
def _sixteen_bits(form: Form) -> None:
    ways = [(f"a number {where}", layer) for where, layer in form.ways(COEFF)]
    if form.call is not None:
        ways.append(("an array", lambda x: form.reverse(x, jnp.float32(COEFF))))
    for dtype in (jnp.bfloat16, jnp.float16):
        cotangent = jnp.linspace(1, 2, 128).astype(dtype)
        expected = (-COEFF * np.asarray(cotangent, np.float32)).astype(dtype)
        for kind, layer in ways:
            (gradient,) = jax.vjp(layer, jnp.zeros(128, dtype))[1](cotangent)
            if gradient.dtype != dtype:
                raise WrongError(f"gradient, λ as {kind}: expected {jnp.dtype(dtype)}, got {gradient.dtype}")
            share = np.mean(np.asarray(gradient) != expected)
            if share:
                name = jnp.dtype(dtype).name
                raise WrongError(f"{name} gradient, λ as {kind}: {share:.0%} of the elements are rounded twice")


@transformation("64 bits: λ is not rounded")
def _sixty_four_bits(form: Form) -> None:
    cotangent = np.linspace(1, 2, 12).reshape(4, 3)
    with jax.enable_x64(True):
        (gradient,) = jax.vjp(form.make(COEFF), jnp.asarray(X, jnp.float64))[1](jnp.asarray(cotangent))
        same(gradient, -COEFF * cotangent, "float64 gradient", 1e-15)


@transformation("nothing is kept alive")
def _memory(form: Form) -> None:
    _, pullback = jax.vjp(form.make(COEFF), jnp.zeros(1000))
    kept = sum(np.size(leaf) for leaf in jax.tree.leaves(pullback))
    if kept >= 1000:
        raise WrongError(f"saved for the backward pass: expected nothing of x's size, got {kept} elements of 1000")


@transformation("λ changed before backward")
def _changed_coefficient(form: Form) -> None:
    coeff = np.array(COEFF, np.float32)
    _, pullback = jax.vjp(lambda x: form.reverse(x, coeff), the_x())
    coeff[...] = 5.0
    same(pullback(jnp.asarray(FIRST))[0], -COEFF * FIRST)


@transformation("no gradient to λ")
def _no_gradient_to_coefficient(form: Form) -> None:
    to_coeff = jax.grad(lambda coeff: loss_of(lambda x: form.reverse(x, coeff))(the_x()))(jnp.float32(COEFF))
    same(to_coeff, 0.0, "gradient of λ")


@transformation("threads")
def _threads(form: Form) -> None:
    begin = Barrier(4)

    def work(coeff: float) -> None:
        begin.wait()  # all at the same time, each in a thread of its own
        loss = loss_of(form.make(coeff))
        for _ in range(5):
            same(jax.grad(loss)(the_x()), -coeff * FIRST, f"gradient at λ = {coeff:g}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, (0.1, 0.5, 2.0, -1.0)))


TRANSFORMATIONS = (
    _eager,
    _beside,
    _signs,
    _bits,
    _integers,
    _complex,
    _double_backward,
    _vjp,
    _vmap_grad,
    _vmap_coeff,
    _grad_vmap_coeff,
    _per_sample,
    _jacrev,
    _jacfwd,
    _jvp,
    _linearize,
    _transpose_linearized,
    _transpose,
    _hessian,
    _hvp_forward,
    _hvp_reverse,
    _hvp_reverse_forward,
    _per_sample_gradients,
    _sixteen_bits,
    _sixty_four_bits,
    _memory,
    _changed_coefficient,
    _no_gradient_to_coefficient,
    _threads,
)
"""The rows of this module, in the order of the table."""
