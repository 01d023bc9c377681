"""Weight initialisation through `Module.apply`: the layer has no parameters, so an initialiser passes it by."""

import torch
from torch import nn

from grl.torch_impl import GRL


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 20), GRL(0.5), nn.Linear(20, 1))
model.apply(initialise)
assert not list(model[1].parameters())
assert model[1].coeff == 0.5
assert all(layer.bias.eq(0).all() for layer in (model[0], model[2]))
bound = (6 / (10 + 20)) ** 0.5
assert model[0].weight.abs().max() <= bound
print(f"weights within ±{bound:.3f}, λ still {model[1].coeff}")
