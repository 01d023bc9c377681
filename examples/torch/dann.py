"""The DANN class around your own backbone, which can be any module with an `output_dim`; `alpha` is λ."""

import torch
from torch import Tensor, nn

from grl.torch_impl import DANN


class Backbone(nn.Module):
    """Images (N, 1, 16, 16) -> features (N, 32)."""

    output_dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3, stride=2)
        self.linear = nn.Linear(8 * 7 * 7, self.output_dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(torch.relu(self.convolution(x)).flatten(1)))


torch.manual_seed(0)
backbone = Backbone()
# The domain classifier is deeper than the (linear) label classifier.
model = DANN(backbone, num_classes=10, domain_hidden=(64, 64))
images = torch.randn(6, 1, 16, 16)
class_logits, domain_logits = model(images, alpha=0.5)
assert class_logits.shape == (6, 10)
assert domain_logits.shape == (6,)  # above 0: target; below 0: source

weight = backbone.convolution.weight
gradients = {alpha: torch.autograd.grad(model(images, alpha)[1].sum(), weight)[0] for alpha in (-1.0, 0.0, 0.5)}
assert torch.allclose(gradients[0.5], -0.5 * gradients[-1.0], atol=1e-6)
assert not gradients[0.0].any()
print({alpha: round(gradient.norm().item(), 4) for alpha, gradient in gradients.items()})
