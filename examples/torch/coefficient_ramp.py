"""A coefficient that ramps linearly from −1 to 1: the features help the domain classifier first and fight it later."""

import torch

from grl import LinearSchedule
from grl.torch_impl import GRL

layer = GRL(LinearSchedule(total_steps=10, start=-1.0, end=1.0))
x = torch.ones(1, requires_grad=True)
factors = []
for _ in range(11):
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    factors.append(gradient.item())
    layer.step()  # λ changes here and nowhere else

assert factors[0] == 1.0
assert factors[5] == 0.0
assert factors[10] == -1.0
print("factor on the gradient:", " ".join(f"{factor:+.1f}" for factor in factors))
