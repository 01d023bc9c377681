"""Per-sample coefficients: λ of shape (N,) weighs each sample of the batch by itself, here by a confidence."""

import torch

from grl.torch_impl import gradient_reversal

features = torch.ones(4, 2, 3, requires_grad=True)
confidence = torch.tensor([0.0, 0.25, 0.5, 1.0])  # of each sample; no gradient ever flows to λ
gradient_reversal(features, confidence).sum().backward()
assert torch.equal(features.grad, -confidence.reshape(4, 1, 1).expand(4, 2, 3))

try:
    gradient_reversal(features, torch.ones(3))  # fits the last axis, but means nothing: refused, not broadcast
except ValueError as error:
    print(error)
else:
    raise AssertionError("a coefficient of the wrong shape was accepted")
