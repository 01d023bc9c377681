"""The first check: compare sign and size of the input's gradient with those of the same network without the layer."""

import torch
from torch import nn

from grl.torch_impl import GRL

torch.manual_seed(0)
first, last = nn.Linear(10, 20), nn.Linear(20, 1)
with_layer = nn.Sequential(first, GRL(), last)
without = nn.Sequential(first, last)

x = torch.randn(4, 10, requires_grad=True)
assert torch.equal(with_layer(x), without(x))  # forward: the identity

reversed_ = torch.autograd.grad(with_layer(x).sum(), x)[0]
plain = torch.autograd.grad(without(x).sum(), x)[0]
assert torch.equal(reversed_, -plain)  # backward: the negative, bit for bit
print(f"gradient of the first input: {plain[0, 0]:+.4f} without the layer, {reversed_[0, 0]:+.4f} with it")
