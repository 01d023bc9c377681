"""Conditional reversal: an argument of the call decides whether the gradient is reversed or passed on."""

import torch

from grl.torch_impl import GRL, gradient_reversal

layer = GRL(0.7)
x = torch.ones(3, requires_grad=True)
(on,) = torch.autograd.grad(layer(x, reverse=True).sum(), x)
(off,) = torch.autograd.grad(layer(x, reverse=False).sum(), x)
assert torch.allclose(on, torch.full((3,), -0.7))
assert torch.equal(off, torch.ones(3))

# Where the flag is a tensor on some device, choose λ by it instead: −1 passes the gradient on. Nothing synchronises.
flag = torch.tensor(False)
coeff = torch.where(flag, 0.7, -1.0)
(chosen,) = torch.autograd.grad(gradient_reversal(x, coeff).sum(), x)
assert torch.equal(chosen, off)
print("reverse=True:", on.tolist(), " reverse=False:", off.tolist())
