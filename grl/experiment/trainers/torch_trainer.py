"""The PyTorch trainer of an experiment: a `DANN` with its optimiser, fed with NumPy arrays by `grl.experiment`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from grl.arrays import Array, Weights
from grl.diagnosis.gradient_report import DomainGradientReport, domain_gradient_report
from grl.experiment.architecture import Architecture
from grl.experiment.checkpoint_checks import MOMENTS, check_shapes, state_shapes
from grl.experiment.config import Config
from grl.experiment.processes import ALONE, Processes, check_shares
from grl.experiment.trainer import Prediction, StepRecords
from grl.experiment.trainers.torch_network import Losses, Objective, build, build_optimizer
from grl.experiment.trainers.torch_processes import fill, find_device, full, gather, local, mean, spread
from grl.torch_impl.dann import DANN

__all__ = ["Trainer", "versions"]


def versions() -> dict[str, str]:
    """Return the versions of the packages that the figures depend on."""
    return {"torch": torch.__version__}


class Trainer:
    """A model in training in PyTorch; its methods are those of `grl.experiment.trainer.Trainer`.

    Args:
        architecture: the network.
        config: the run's settings; device, dtype, method, sharding and the optimiser's are read.
        weights: the initial weights, by their PyTorch names.
        processes: the processes that train together; all of them call every method together.

    Raises:
        ConfigError: there is no such device, or the batch or the device cannot be shared among the processes.
        CheckpointError: a weight is missing or unknown, or its shape differs.
    """

    def __init__(
        self, architecture: Architecture, config: Config, weights: Weights, processes: Processes = ALONE
    ) -> None:
        self.device = find_device(config.device, processes)
        self.processes, self.devices = processes, processes.count
        check_shares(config.batch_size, self.devices, "processes")
        check_shapes("weights", weights, architecture.shapes())
        self._state_shapes = state_shapes(architecture, config.optimizer)
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[config.dtype]
        self.adapts = config.method == "dann"
        self.clip_norm = config.clip_norm
        self.model = build(architecture).to(self.device, self.dtype)
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.model.load_state_dict(tensors | _batch_counts(self.model))
        self.model.domain_classifier.requires_grad_(self.adapts)
        self.objective: nn.Module = Objective(self.model, self.adapts)
        if processes.count > 1:
            if self.device.type != "cpu":
                torch.accelerator.set_device_index(self.device.index)
            self.objective = spread(self.objective, list(self.model.children()), config.sharding)
        self.optimizer = build_optimizer(config, self.model)
        self._moments = _start_moments(self.optimizer, self.model, MOMENTS[config.optimizer])
        self._counts = [state["step"] for state in self.optimizer.state.values() if "step" in state]
        changing = [*self.model.state_dict().values(), *self._moments.values(), *self._counts]
        self._changing = [local(tensor) for tensor in changing]  # everything that a step changes, in place
        self._marked: list[Tensor] = []

    def run(self, x: Array, y: Array, x_target: Array, coeffs: Array, rates: Array) -> StepRecords:
        """Train for k steps.

        Args:
            x: (k, B, ...) labelled inputs. Each of several processes passes its share of every batch.
            y: (k, B) their labels.
            x_target: (k, B, ...) target inputs; ignored unless the method is "dann".
            coeffs: (k,) λ of each step.
            rates: (k, 2) learning rates of the feature extractor and of the classifiers.

        Returns:
            The losses and the accuracy over the whole batch, before each update.
        """
        self.model.train()
        labels = torch.from_numpy(y).to(self.device)
        inputs, targets = self._tensor(x), self._tensor(x_target)
        records = []
        for i, (coeff, step_rates) in enumerate(zip(coeffs, rates, strict=True)):
            for group, rate in zip(self.optimizer.param_groups, step_rates, strict=True):
                group["lr"] = float(rate)
            records.append(self._step(inputs[i], labels[i], targets[i], float(coeff)))
        return StepRecords(*self._over_all(mean, torch.stack(records, 1)).cpu().numpy())

    def _step(self, x: Tensor, y: Tensor, x_target: Tensor, coeff: float) -> Tensor:
        losses: Losses = self.objective(x, y, x_target, coeff)
        loss = losses.label + losses.domain if self.adapts else losses.label
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            _clip(self.model, self.clip_norm)
        self.optimizer.step()
        accuracy = (losses.class_logits.detach().argmax(1) == y).to(self.dtype).mean()
        return torch.stack([losses.label.detach(), losses.domain.detach(), accuracy])

    def report_gradients(self, x: Array, y: Array, x_target: Array, coeff: float) -> DomainGradientReport:
        """Report whether the reversal works in this model, with λ = coeff, on one batch. The model does not change."""
        self.model.train()
        return domain_gradient_report(
            self.model,
            (self._tensor(x), torch.from_numpy(y).to(self.device), self._tensor(x_target), coeff),
            label_loss=lambda _, batch: self.objective(*batch).label,
            domain_loss=lambda _, batch: self.objective(*batch).domain,
            features="backbone",
            coeff=coeff,
        )

    @torch.no_grad()
    def predict(self, x: Array) -> Prediction:
        """Return features (N, D), class logits (N, num_classes) and domain logits (N,) in evaluation mode."""
        self.model.eval()
        missing = -len(x) % self.devices
        filled = np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]) if missing else x
        features = self.model.backbone(self._tensor(filled[self.processes.part(len(filled))]))
        outputs = (features, self.model.label_classifier(features), self.model.domain_classifier(features)[:, 0])
        return Prediction(*(self._over_all(gather, output).cpu().numpy()[: len(x)] for output in outputs))

    def weights(self) -> Weights:
        """Return the current weights by their PyTorch names, each a contiguous copy."""
        return {name: _copy(tensor) for name, tensor in _weight_tensors(self.model).items()}

    def state(self) -> Weights:
        """Return a copy of every array that a step changes; see `grl.experiment.trainer.Trainer.state`."""
        state = {f"model/{name}": array for name, array in self.weights().items()}
        state |= {name: _copy(tensor) for name, tensor in self._moments.items()}
        if self._counts:  # the count of a parameter that gets no gradient stays 0
            state["step"] = np.array(max(int(count) for count in self._counts))
        return state

    def load_state(self, state: Weights) -> None:
        """Continue from a state of the same network and optimiser, from either backend.

        Raises:
            CheckpointError: a name is missing or unknown, or a shape differs.
        """
        check_shapes("state", state, self._state_shapes)
        tensors = {f"model/{name}": tensor for name, tensor in _weight_tensors(self.model).items()} | self._moments
        for name, tensor in tensors.items():
            fill(tensor, torch.from_numpy(state[name]))
        for count in self._counts:
            count.fill_(int(state["step"]))

    def mark(self) -> None:
        """Remember the present state, on the device, for `rewind`. A later mark replaces it."""
        self._marked = [tensor.clone() for tensor in self._changing]

    def rewind(self) -> None:
        """Return to the state at the last `mark`."""
        torch._foreach_copy_(self._changing, self._marked)

    def is_finite(self) -> bool:
        """Return whether all weights and statistics are finite."""
        floats = [local(tensor) for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        largest = torch.stack([tensor.norm(torch.inf) if tensor.numel() else tensor.sum() for tensor in floats]).sum()
        return bool(self._over_all(mean, largest).isfinite())

    def _tensor(self, x: Array) -> Tensor:
        return torch.from_numpy(x).to(self.device, self.dtype)

    def _over_all(self, collective: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        return collective(tensor) if self.processes.count > 1 else tensor


def _start_moments(optimizer: torch.optim.Optimizer, model: DANN, kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """Create the optimiser's state, which PyTorch delays until the first step; return the moments as "KIND/NAME"."""
    moments: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = {kind: torch.zeros_like(parameter) for kind in kinds}
        moments |= {f"{kind}/{name}": tensor for kind, tensor in state.items()}
        count = {"step": torch.tensor(0.0)} if isinstance(optimizer, torch.optim.Adam) else {}
        optimizer.state[parameter] = state | count
    return moments


def _weight_tensors(model: DANN) -> dict[str, Tensor]:
    """Return the weights and statistics by name, without batch norm's counts of its batches, which nothing reads."""
    counts = _batch_counts(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in counts}


def _batch_counts(model: DANN) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith(".num_batches_tracked")}


def _copy(tensor: Tensor) -> Array:
    return np.array(full(tensor).cpu().numpy(), order="C")


def _clip(model: DANN, largest: float) -> None:
    """Scale all gradients by min(1, largest / global norm), without the 1e-6 that PyTorch adds and JAX does not."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = full(torch.nn.utils.get_total_norm(gradients))
    shares = [local(gradient) for gradient in gradients]
    torch._foreach_mul_(shares, torch.clamp(largest / norm, max=1.0))
