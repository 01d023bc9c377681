"""The PyTorch half of an experiment: a `DANN` with its optimiser, fed with NumPy arrays by `grl.experiment`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from grl.architecture import Architecture, Weights
from grl.parity import DomainGradientReport, domain_gradient_report
from grl.torch_impl.dann import DANN, MLP, ConvNet

if TYPE_CHECKING:
    from grl.experiment import Config

__all__ = ["Trainer", "versions"]

Array = NDArray[Any]
_EVALUATION_BATCH = 500


def versions() -> dict[str, str]:
    """The versions of the packages that the figures depend on."""
    return {"torch": torch.__version__}


class Trainer:
    """A model in training: the same methods, with the same arrays in and out, as in `grl.jax_impl.training`.

    Args:
        architecture: the network.
        config: the run's settings; device, dtype, method and the optimiser's are read.
        weights: the initial weights, by their PyTorch names.

    Raises:
        LookupError: there is no such device.
    """

    def __init__(self, architecture: Architecture, config: Config, weights: Weights) -> None:
        self.device = _find_device(config.device)
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[config.dtype]
        self.adapts = config.method == "dann"
        self.clip_norm = config.clip_norm
        self.model = _build(architecture).to(self.device, self.dtype)
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.model.load_state_dict(tensors, strict=False)  # not strict: batch norm counts its batches, for nobody
        extractor = list(self.model.backbone.parameters())
        classifiers = [*self.model.label_classifier.parameters(), *self.model.domain_classifier.parameters()]
        groups = [{"params": extractor}, {"params": classifiers}]
        if config.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=config.momentum)
        else:
            self.optimizer = torch.optim.Adam(groups)
        self._moments = _start_moments(self.optimizer, self.model)
        self._counts = [state["step"] for state in self.optimizer.state.values() if "step" in state]
        # All that a step changes, in place.
        self._tensors = [*self.model.state_dict().values(), *self._moments.values(), *self._counts]

    def run(self, x: Array, y: Array, x_target: Array, coeffs: Array, rates: Array) -> tuple[Array, Array, Array]:
        """Train for k steps.

        Args:
            x: (k, B, ...) labelled inputs.
            y: (k, B) their labels.
            x_target: (k, B, ...) target inputs; not looked at unless the method is "dann".
            coeffs: (k,) λ of each step.
            rates: (k, 2) learning rates of the feature extractor and of the classifiers.

        Returns:
            label loss, domain loss (NaN without adaptation) and accuracy on `x`, each (k,), before each update.
        """
        self.model.train()
        labels = torch.from_numpy(y).to(self.device)
        inputs, targets = self._tensor(x), self._tensor(x_target)
        records = []
        for i, (coeff, step_rates) in enumerate(zip(coeffs, rates, strict=True)):
            for group, rate in zip(self.optimizer.param_groups, step_rates, strict=True):
                group["lr"] = float(rate)
            records.append(self._step(inputs[i], labels[i], targets[i], float(coeff)))
        label_loss, domain_loss, accuracy = torch.stack(records, 1).cpu().numpy()
        return label_loss, domain_loss, accuracy

    def _step(self, x: Tensor, y: Tensor, x_target: Tensor, coeff: float) -> Tensor:
        label_loss, domain_loss, class_logits = self._losses(x, y, x_target, coeff)
        loss = label_loss + domain_loss if self.adapts else label_loss
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            _clip(self.model, self.clip_norm)
        self.optimizer.step()
        accuracy = (class_logits.detach().argmax(1) == y).to(self.dtype).mean()
        return torch.stack([label_loss.detach(), domain_loss.detach(), accuracy])

    def _losses(self, x: Tensor, y: Tensor, x_target: Tensor, coeff: float) -> tuple[Tensor, Tensor, Tensor]:
        class_logits, source_logits = self.model(x, coeff)
        label_loss = F.cross_entropy(class_logits, y)
        if not self.adapts:
            return label_loss, torch.full_like(label_loss, torch.nan), class_logits
        _, target_logits = self.model(x_target, coeff)  # on its own: batch norm sees one domain at a time
        logits = torch.cat([source_logits, target_logits])
        domains = torch.cat([torch.zeros_like(source_logits), torch.ones_like(target_logits)])
        return label_loss, F.binary_cross_entropy_with_logits(logits, domains), class_logits

    def report_gradients(self, x: Array, y: Array, x_target: Array, coeff: float) -> DomainGradientReport:
        """Return whether the reversal works in this model, with λ = coeff, on one batch; changes nothing."""
        self.model.train()
        return domain_gradient_report(
            self.model,
            (self._tensor(x), torch.from_numpy(y).to(self.device), self._tensor(x_target), coeff),
            label_loss=lambda _, batch: self._losses(*batch)[0],
            domain_loss=lambda _, batch: self._losses(*batch)[1],
            features="backbone",
            coeff=coeff,
        )

    @torch.no_grad()
    def predict(self, x: Array) -> tuple[Array, Array, Array]:
        """Return features (N, D), class logits (N, num_classes) and domain logits (N,) in evaluation mode."""
        self.model.eval()
        parts = []
        for start in range(0, len(x), _EVALUATION_BATCH):
            features = self.model.backbone(self._tensor(x[start : start + _EVALUATION_BATCH]))
            outputs = (features, self.model.label_classifier(features), self.model.domain_classifier(features)[:, 0])
            parts.append([output.cpu().numpy() for output in outputs])
        features, class_logits, domain_logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return features, class_logits, domain_logits

    def weights(self) -> Weights:
        """Return the weights as they are now, by their PyTorch names, each a contiguous copy."""
        state = self.model.state_dict()
        return {
            name: np.array(tensor.cpu().numpy(), order="C")
            for name, tensor in state.items()
            if not name.endswith("num_batches_tracked")
        }

    def state(self) -> Weights:
        """Return copies of all that a step changes: `model/NAME`, the moments, as `exp_avg/NAME`, and Adam's `step`."""
        state = {f"model/{name}": array for name, array in self.weights().items()}
        state |= {name: np.array(tensor.cpu().numpy(), order="C") for name, tensor in self._moments.items()}
        if self._counts:  # of parameters that get no gradient it stays 0
            state["step"] = np.array(max(int(count) for count in self._counts))
        return state

    def load_state(self, state: Weights) -> None:
        """Go on from what `state` has returned, here or in JAX, for the same network and optimiser."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()} | self._moments
        for name in tensors.keys() & state.keys():  # batch norm counts its batches, for nobody
            tensors[name].copy_(torch.from_numpy(state[name]))
        for count in self._counts:
            count.fill_(int(state["step"]))

    def mark(self) -> Any:
        """Return what `rewind` takes: all that a step changes, on the device."""
        return [tensor.clone() for tensor in self._tensors]

    def rewind(self, mark: Any) -> None:
        """Undo the steps since a mark."""
        torch._foreach_copy_(self._tensors, mark)

    def is_finite(self) -> bool:
        """Return whether all weights and statistics are finite."""
        floats = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        return bool(torch.stack(torch._foreach_norm(floats, torch.inf)).isfinite().all())

    def _tensor(self, x: Array) -> Tensor:
        return torch.from_numpy(x).to(self.device, self.dtype)


def _build(architecture: Architecture) -> DANN:
    backbone: ConvNet | MLP
    if architecture.is_image:
        backbone = ConvNet(
            architecture.sample_shape, architecture.channels, architecture.kernel_size, architecture.padding
        )
    else:
        backbone = MLP(architecture.sample_shape[0], architecture.hidden)
    return DANN(
        backbone,
        architecture.num_classes,
        label_hidden=architecture.label_hidden,
        domain_hidden=architecture.domain_hidden,
    )


def _start_moments(optimizer: torch.optim.Optimizer, model: DANN) -> dict[str, Tensor]:
    """Make the optimiser's state, which PyTorch puts off until the first step; return the moments by kind and name."""
    adam = isinstance(optimizer, torch.optim.Adam)
    kinds, count = (("exp_avg", "exp_avg_sq"), {"step": 0.0}) if adam else (("momentum_buffer",), {})
    moments: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = {kind: torch.zeros_like(parameter) for kind in kinds}
        moments |= {f"{kind}/{name}": tensor for kind, tensor in state.items()}
        optimizer.state[parameter] = state | {key: torch.tensor(value) for key, value in count.items()}
    return moments


def _find_device(name: str) -> torch.device:
    present = ["cpu"]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and torch.accelerator.is_available():
        present += [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
    kind, _, index = name.partition(":")
    device = f"{'cuda' if kind == 'gpu' else kind}:{index or 0}"
    if device not in ("cpu:0", *present):
        raise LookupError(f"no such device for PyTorch here: {name!r}; present: {', '.join(present)}")
    return torch.device("cpu" if device == "cpu:0" else device)


def _clip(model: DANN, largest: float) -> None:
    """Scale all gradients by min(1, largest / global norm): without the 1e-6 of PyTorch's own, which JAX has not."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, torch.clamp(largest / norm, max=1.0))
