"""Weight initialisation through `Module.apply`: the layer has no parameters, so an initialiser skips it."""

import torch
from torch import nn

from grl.torch_impl import GRL


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


torch.manual_seed(0)
first, reversal, last = nn.Linear(10, 20), GRL(0.5), nn.Linear(20, 1)
model = nn.Sequential(first, reversal, last)
model.apply(initialise)
assert not list(reversal.parameters())
assert reversal.coeff == 0.5
assert all(layer.bias.eq(0).all() for layer in (first, last))
bound = (6 / (10 + 20)) ** 0.5
assert first.weight.abs().max() <= bound
print(f"weights within ±{bound:.3f}, λ still {reversal.coeff}")
