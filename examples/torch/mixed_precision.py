"""Mixed precision: autocast to bfloat16, and float16 gradients with a loss scale. λ is never rounded to 16 bits."""

import torch
from torch import nn

from grl.torch_impl import GRL, gradient_reversal

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 20), GRL(0.1), nn.Linear(20, 1))
x = torch.randn(8, 10)
with torch.autocast("cpu", dtype=torch.bfloat16):
    output = model(x)
assert output.dtype == torch.bfloat16
output.float().mean().backward()
assert model[0].weight.grad.dtype == torch.float32  # as autocast promises

# One gradient in bfloat16: λ·g is taken in float32 and rounded once. λ = 0.1 rounded to bfloat16 first, as in
# `g * -coeff` with a bfloat16 coeff, would give another number.
y = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
g = torch.tensor(1.203125, dtype=torch.bfloat16)
gradient_reversal(y, 0.1).backward(g)
assert y.grad.item() == (-(g.float() * 0.1)).bfloat16().item()
assert y.grad.item() != (g * -torch.tensor(0.1, dtype=torch.bfloat16)).item()

# float16 with a loss scale: a gradient that float16 could not hold arrives, because the scale is a power of two.
scale = 2.0**14
z = torch.ones(3, dtype=torch.float16, requires_grad=True)
(gradient_reversal(z, 0.5).float() * 1e-7).sum().mul(scale).backward()
unscaled = z.grad.float() / scale
assert torch.allclose(unscaled, torch.full((3,), -0.5e-7), rtol=1e-3)
print(f"bfloat16 gradient {y.grad.item()}, float16 gradient after unscaling {unscaled[0].item():.3e}")
