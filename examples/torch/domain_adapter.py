"""A model that holds the layer: feature extractor, label classifier and, behind a `GRL`, domain classifier."""

import torch
from torch import Tensor, nn

from grl.torch_impl import GRL


class DomainAdapter(nn.Module):
    """Inputs (N, 10) -> class logits (N, 3) and domain logits (N, 1)."""

    def __init__(self, coeff: float) -> None:
        super().__init__()
        self.features = nn.Linear(10, 20)
        self.label_classifier = nn.Linear(20, 3)
        self.reversal = GRL(coeff)
        self.domain_classifier = nn.Linear(20, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.features(x))
        return self.label_classifier(features), self.domain_classifier(self.reversal(features))


torch.manual_seed(0)
model = DomainAdapter(coeff=0.3)
weight = model.features.weight
source, labels, target = torch.randn(16, 10), torch.randint(3, (16,)), torch.randn(16, 10) + 1


def losses() -> tuple[Tensor, Tensor]:
    class_logits, source_domain = model(source)
    _, target_domain = model(target)
    domain = torch.cat([source_domain, target_domain]).squeeze(-1)
    is_target = torch.arange(32) >= 16
    label_loss = nn.functional.cross_entropy(class_logits, labels)
    return label_loss, nn.functional.binary_cross_entropy_with_logits(domain, is_target.float())


label_gradient = torch.autograd.grad(losses()[0], weight)[0]
domain_gradient = torch.autograd.grad(losses()[1], weight)[0]  # already reversed by the layer
label_loss, domain_loss = losses()
both = torch.autograd.grad(label_loss + domain_loss, weight)[0]  # losses are added; the layer does the subtraction
assert torch.allclose(both, label_gradient + domain_gradient, atol=1e-6)

model.reversal.coeff = -1.0  # λ can be set at any time; −1 passes the gradient on
assert torch.allclose(domain_gradient, -0.3 * torch.autograd.grad(losses()[1], weight)[0], atol=1e-6)
print(model)
