"""Mixed precision: autocast to bfloat16, and float16 gradients with a loss scale. λ is never rounded to 16 bits."""

import torch
from torch import nn

from grl.torch_impl import GRL, gradient_reversal

torch.manual_seed(0)
first, last = nn.Linear(10, 20), nn.Linear(20, 1)
model = nn.Sequential(first, GRL(0.1), last)
x = torch.randn(8, 10)
with torch.autocast("cpu", dtype=torch.bfloat16):
    output = model(x)
assert output.dtype == torch.bfloat16
(weight_gradient,) = torch.autograd.grad(output.float().mean(), first.weight)
assert weight_gradient.dtype == torch.float32  # as autocast promises

# One gradient in bfloat16: λ·g is computed in float32 and rounded once. Rounding λ = 0.1 to bfloat16 first, as
# `g * -coeff` with a bfloat16 coeff does, gives a different number.
y = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
g = torch.tensor(1.203125, dtype=torch.bfloat16)
(gradient,) = torch.autograd.grad(gradient_reversal(y, 0.1), y, g)
assert gradient.item() == (-(g.float() * 0.1)).bfloat16().item()
assert gradient.item() != (g * -torch.tensor(0.1, dtype=torch.bfloat16)).item()

# float16 with a loss scale: the scale keeps a gradient representable that float16 would round to almost nothing.
# The scale is a power of two, so that multiplying and dividing by it are exact.
scale = 2.0**14
z = torch.ones(3, dtype=torch.float16, requires_grad=True)
loss = (gradient_reversal(z, 0.5).float() * 1e-7).sum()
(scaled,) = torch.autograd.grad(loss * scale, z)
unscaled = scaled.float() / scale
assert torch.allclose(unscaled, torch.full((3,), -0.5e-7), rtol=1e-3)
print(f"bfloat16 gradient {gradient.item()}, float16 gradient after unscaling {unscaled[0].item():.3e}")
