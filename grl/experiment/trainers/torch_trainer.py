"""The PyTorch half of an experiment: a `DANN` with its optimiser, fed with NumPy arrays by `grl.experiment`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from grl.arrays import Array, Weights
from grl.diagnosis.gradient_report import DomainGradientReport, domain_gradient_report
from grl.experiment.architecture import Architecture
from grl.experiment.processes import ALONE, Processes, check_shares
from grl.experiment.trainers.torch_processes import fill, find_device, full, gather, local, mean, spread
from grl.torch_impl.dann import DANN, MLP, ConvNet

if TYPE_CHECKING:
    from grl.experiment import Config

__all__ = ["Trainer", "versions"]

_EVALUATION_BATCH = 500


def versions() -> dict[str, str]:
    """The versions of the packages that the figures depend on."""
    return {"torch": torch.__version__}


class Trainer:
    """A model in training: the same methods, with the same arrays in and out, as in `jax_trainer`.

    Args:
        architecture: the network.
        config: the run's settings; device, dtype, method and the optimiser's are read.
        weights: the initial weights, by their PyTorch names.
        processes: those that train together, which then call every method together.

    Raises:
        LookupError: there is no such device.
        ConfigError: the batch cannot be dealt out to the processes, or the device cannot.
    """

    def __init__(
        self, architecture: Architecture, config: Config, weights: Weights, processes: Processes = ALONE
    ) -> None:
        self.device = find_device(config.device, processes)
        self.processes, self.devices = processes, processes.count
        check_shares(config.batch_size, self.devices, "processes")
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[config.dtype]
        self.adapts = config.method == "dann"
        self.clip_norm = config.clip_norm
        self.model = _build(architecture).to(self.device, self.dtype)
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.model.load_state_dict(tensors, strict=False)  # not strict: batch norm counts its batches, for nobody
        self.model.domain_classifier.requires_grad_(self.adapts)
        self.objective: nn.Module = _Objective(self.model, self.adapts)
        if processes.count > 1:
            if self.device.type != "cpu":
                torch.accelerator.set_device_index(self.device.index)
            self.objective = spread(self.objective, list(self.model.children()), config.sharding)
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
        every = [*self.model.state_dict().values(), *self._moments.values(), *self._counts]
        self._tensors = [local(tensor) for tensor in every]

    def run(self, x: Array, y: Array, x_target: Array, coeffs: Array, rates: Array) -> tuple[Array, Array, Array]:
        """Train for k steps.

        Args:
            x: (k, B, ...) labelled inputs: of several processes, each gives its part of every batch.
            y: (k, B) their labels.
            x_target: (k, B, ...) target inputs; not looked at unless the method is "dann".
            coeffs: (k,) λ of each step.
            rates: (k, 2) learning rates of the feature extractor and of the classifiers.

        Returns:
            label loss, domain loss (NaN without adaptation) and accuracy over the whole batch, each (k,), before each
            update.
        """
        self.model.train()
        labels = torch.from_numpy(y).to(self.device)
        inputs, targets = self._tensor(x), self._tensor(x_target)
        records = []
        for i, (coeff, step_rates) in enumerate(zip(coeffs, rates, strict=True)):
            for group, rate in zip(self.optimizer.param_groups, step_rates, strict=True):
                group["lr"] = float(rate)
            records.append(self._step(inputs[i], labels[i], targets[i], float(coeff)))
        label_loss, domain_loss, accuracy = self._over_all(mean, torch.stack(records, 1)).cpu().numpy()
        return label_loss, domain_loss, accuracy

    def _step(self, x: Tensor, y: Tensor, x_target: Tensor, coeff: float) -> Tensor:
        label_loss, domain_loss, class_logits = self.objective(x, y, x_target, coeff)
        loss = label_loss + domain_loss if self.adapts else label_loss
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            _clip(self.model, self.clip_norm)
        self.optimizer.step()
        accuracy = (class_logits.detach().argmax(1) == y).to(self.dtype).mean()
        return torch.stack([label_loss.detach(), domain_loss.detach(), accuracy])

    def report_gradients(self, x: Array, y: Array, x_target: Array, coeff: float) -> DomainGradientReport:
        """Return whether the reversal works in this model, with λ = coeff, on one batch; changes nothing."""
        self.model.train()
        return domain_gradient_report(
            self.model,
            (self._tensor(x), torch.from_numpy(y).to(self.device), self._tensor(x_target), coeff),
            label_loss=lambda _, batch: self.objective(*batch)[0],
            domain_loss=lambda _, batch: self.objective(*batch)[1],
            features="backbone",
            coeff=coeff,
        )

    @torch.no_grad()
    def predict(self, x: Array) -> tuple[Array, Array, Array]:
        """Return features (N, D), class logits (N, num_classes) and domain logits (N,) in evaluation mode."""
        self.model.eval()
        parts = []
        for start in range(0, len(x), _EVALUATION_BATCH):
            batch = x[start : start + _EVALUATION_BATCH]
            missing = -len(batch) % self.devices
            filled = np.concatenate([batch, np.zeros((missing, *x.shape[1:]), x.dtype)]) if missing else batch
            features = self.model.backbone(self._tensor(filled[self.processes.part(len(filled))]))
            outputs = (features, self.model.label_classifier(features), self.model.domain_classifier(features)[:, 0])
            parts.append([self._over_all(gather, output).cpu().numpy()[: len(batch)] for output in outputs])
        features, class_logits, domain_logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return features, class_logits, domain_logits

    def weights(self) -> Weights:
        """Return the weights as they are now, by their PyTorch names, each a contiguous copy."""
        state = self.model.state_dict()
        return {
            name: np.array(full(tensor).cpu().numpy(), order="C")
            for name, tensor in state.items()
            if not name.endswith("num_batches_tracked")
        }

    def state(self) -> Weights:
        """Return copies of all that a step changes: `model/NAME`, the moments, as `exp_avg/NAME`, and Adam's `step`."""
        state = {f"model/{name}": array for name, array in self.weights().items()}
        state |= {name: np.array(full(tensor).cpu().numpy(), order="C") for name, tensor in self._moments.items()}
        if self._counts:  # of parameters that get no gradient it stays 0
            state["step"] = np.array(max(int(count) for count in self._counts))
        return state

    def load_state(self, state: Weights) -> None:
        """Go on from what `state` has returned, here or in JAX, for the same network and optimiser."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()} | self._moments
        for name in tensors.keys() & state.keys():  # batch norm counts its batches, for nobody
            fill(tensors[name], torch.from_numpy(state[name]))
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
        floats = [local(tensor) for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        largest = torch.stack([tensor.norm(torch.inf) if tensor.numel() else tensor.sum() for tensor in floats]).sum()
        return bool(self._over_all(mean, largest).isfinite())

    def _tensor(self, x: Array) -> Tensor:
        return torch.from_numpy(x).to(self.device, self.dtype)

    def _over_all(self, collective: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        return collective(tensor) if self.processes.count > 1 else tensor


class _Objective(nn.Module):
    """The losses as one module: to each backward pass one forward pass, which is what DistributedDataParallel needs."""

    def __init__(self, model: DANN, adapts: bool) -> None:
        super().__init__()
        self.model, self.adapts = model, adapts

    def forward(self, x: Tensor, y: Tensor, x_target: Tensor, coeff: float) -> tuple[Tensor, Tensor, Tensor]:
        class_logits, source_logits = self.model(x, coeff)
        label_loss = F.cross_entropy(class_logits, y)
        if not self.adapts:
            return label_loss, torch.full_like(label_loss, torch.nan), class_logits
        _, target_logits = self.model(x_target, coeff)  # on its own: batch norm sees one domain at a time
        logits = torch.cat([source_logits, target_logits])
        domains = torch.cat([torch.zeros_like(source_logits), torch.ones_like(target_logits)])
        return label_loss, F.binary_cross_entropy_with_logits(logits, domains), class_logits


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


def _clip(model: DANN, largest: float) -> None:
    """Scale all gradients by min(1, largest / global norm): without the 1e-6 of PyTorch's own, which JAX has not."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = full(torch.nn.utils.get_total_norm(gradients))
    shares = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    torch._foreach_mul_(shares, torch.clamp(largest / norm, max=1.0))
