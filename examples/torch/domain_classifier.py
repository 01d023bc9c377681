"""A domain classifier that reverses by calling the function: λ is an argument of the forward pass."""

import torch
from torch import Tensor, nn

from grl.torch_impl import GradientReverseFunction


class DomainClassifier(nn.Module):
    """Features (N, 20) -> logits (N,), positive where a sample looks like the target domain."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(20, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, features: Tensor, coeff: float) -> Tensor:
        features = GradientReverseFunction.apply(features, coeff)
        return self.out(torch.relu(self.hidden(features))).squeeze(-1)


torch.manual_seed(0)
classifier = DomainClassifier()
features = torch.randn(8, 20, requires_grad=True)
is_target = torch.arange(8) % 2

gradients = {}
for coeff in (-1.0, 0.5):  # −1 passes the gradient on: the plain classifier
    loss = nn.functional.binary_cross_entropy_with_logits(classifier(features, coeff), is_target.float())
    gradients[coeff] = torch.autograd.grad(loss, [features, classifier.out.weight])

(plain, weight_plain), (reversed_, weight_reversed) = gradients[-1.0], gradients[0.5]
assert torch.allclose(reversed_, -0.5 * plain)  # the gradient of the features is reversed and scaled;
assert torch.equal(weight_reversed, weight_plain)  # the classifier's own gradient is not
print(f"norm of the gradient at the features: {plain.norm():.4f} plain, {reversed_.norm():.4f} reversed with λ = 0.5")
