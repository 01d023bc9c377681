"""Without the private names of PyTorch and JAX that the layers use, the gradients are right or refused."""

import subprocess
import sys

import pytest

from tests.support.installed import needs_jax, needs_torch

HIDE = """
import builtins
usual = builtins.__import__
def hiding(name, globals=None, locals=None, fromlist=(), level=0):
    if (globals or {}).get("__name__") == "grl.torch_impl._internals" and HIDDEN in (fromlist or ()):
        raise ImportError(name)
    return usual(name, globals, locals, fromlist, level)
builtins.__import__ = hiding
"""

TORCH = """
import warnings
from collections import OrderedDict, namedtuple

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from grl.torch_impl import GRL, function, gradient_reversal, module
builtins.__import__ = usual
if HIDDEN == "is_traced":
    function.is_traced = lambda tensor: False
else:
    assert PROOF

x = torch.tensor([1.0, 2.0])
tensor = torch.tensor(0.5)
for coeff in (0.5, tensor, torch.tensor([0.5, 0.5])):
    square = lambda x: (gradient_reversal(x, coeff) ** 2).sum()
    leaf = x.clone().requires_grad_()
    square(leaf).backward()
    assert torch.equal(leaf.grad, -x), coeff
    assert torch.equal(torch.func.grad(square)(x), -x), coeff
    assert torch.allclose(torch.func.hessian(square)(x), 0.5 * torch.eye(2)), coeff
    with forward_ad.dual_level():
        dual = gradient_reversal(forward_ad.make_dual(x, torch.ones(2)), coeff)
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, torch.full((2,), -0.5)), coeff
    compiled = torch.compile(square, backend="aot_eager")
    leaf.grad = None
    compiled(leaf).backward()
    assert torch.equal(leaf.grad, -x), coeff
    assert torch.equal(torch.compile(torch.func.grad(square), backend="aot_eager")(x), -x), coeff

# A dual number that meets a compiled function: right, or refused.
try:
    with forward_ad.dual_level():
        dual = torch.compile(lambda x: gradient_reversal(x, 0.5), backend="aot_eager")(
            forward_ad.make_dual(x, torch.ones(2))
        )
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, torch.full((2,), -0.5))
except RuntimeError:
    pass

each = torch.func.vmap(lambda c: torch.func.grad(lambda x: gradient_reversal(x, c).sum())(x))(torch.tensor([1.0, 2.0]))
assert torch.equal(each, torch.tensor([[-1.0, -1.0], [-2.0, -2.0]]))

held, leaf = [tensor], x.clone().requires_grad_()
y = checkpoint(lambda x: gradient_reversal(x * 2, held[0]) * 3, leaf, use_reentrant=False)
held[0] = torch.tensor(7.0)
assert torch.equal(torch.autograd.grad(y.sum(), leaf)[0], torch.full((2,), -3.0))

Pair = namedtuple("Pair", "a b")
leaf = x.clone().requires_grad_()
tree = OrderedDict(a=[leaf, 1], b=(leaf, {"c": leaf}), d=Pair(leaf, None))
mapped = gradient_reversal(tree, 0.5)
assert type(mapped) is OrderedDict and type(mapped["d"]) is Pair and mapped["a"][1] == 1
(mapped["a"][0] + mapped["b"][0] + mapped["b"][1]["c"] + mapped["d"].a).sum().backward()
assert torch.equal(leaf.grad, torch.full((2,), -2.0))

layer = GRL(0.5)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch.jit, which is deprecated
    traced = torch.jit.trace(layer, (torch.ones(2, requires_grad=True),))
assert torch.equal(traced(x), x)
layer.coeff = 0.25
leaf = x.clone().requires_grad_()
layer(leaf).sum().backward()
assert torch.equal(leaf.grad, torch.full((2,), -0.25))
print("right")
"""

PROOFS = {
    "_are_functorch_transforms_active": "function.transforms_may_be_active()",
    "is_functorch_wrapped_tensor": "function.is_wrapped.__module__ == 'grl.torch_impl._internals'",
    "_current_level": "function.dual_state is not forward_ad",
    "tree_map": "function.tree_map.__module__ == 'grl.torch_impl._internals'",
    "is_traced": "True",
    "_is_tracing": "module.is_jit_tracing is torch.jit.is_tracing",
}


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=500)
    assert done.stdout.strip().endswith("right"), done.stderr[-2000:]


@needs_torch
@pytest.mark.parametrize("hidden", PROOFS)
def test_torch_without_a_private_name_gives_the_right_gradients(hidden: str) -> None:
    run(f"HIDDEN = {hidden!r}\n{HIDE}\n{TORCH.replace('PROOF', PROOFS[hidden])}")


@needs_jax
def test_jax_without_user_contexts_reverses_and_refuses_a_bypass() -> None:
    run(
        """
import jax, jax.numpy as jnp
del jax.make_user_context
from grl.jax_impl import gradient_reversal
from grl.jax_impl.bypass import bypassed
assert jax.jit(jax.grad(lambda x: gradient_reversal(x, 0.5)))(1.0) == -0.5
try:
    with bypassed(1.0):
        pass
except NotImplementedError as error:
    assert str(error).startswith("jax.make_user_context: missing in JAX ")
    print("right")
"""
    )
