"""Per-sample coefficients: λ of shape (N,) gives each sample of the batch its own weight, here a confidence."""

import torch

from grl.torch_impl import gradient_reversal

features = torch.ones(4, 2, 3, requires_grad=True)
confidence = torch.tensor([0.0, 0.25, 0.5, 1.0])  # one value per sample; no gradient ever flows to λ
(gradient,) = torch.autograd.grad(gradient_reversal(features, confidence).sum(), features)
assert torch.equal(gradient, -confidence.reshape(4, 1, 1).expand(4, 2, 3))

try:
    gradient_reversal(features, torch.ones(3))  # it fits the last axis, and raises: nothing is broadcast silently
except ValueError as error:
    print(error)
else:
    raise AssertionError("a coefficient of the wrong shape was accepted")
