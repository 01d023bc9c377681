"""The JAX trainer of an experiment: a `DANN` with its optimiser, fed with NumPy arrays by `grl.experiment`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from grl.arrays import Array, Weights
from grl.diagnosis.gradient_report import DomainGradientReport, domain_gradient_report
from grl.experiment.architecture import Architecture
from grl.experiment.checkpoint_checks import check_shapes, state_shapes
from grl.experiment.config import Config
from grl.experiment.processes import ALONE, Processes, check_shares
from grl.experiment.trainer import BLOCK, Prediction, StepRecords
from grl.experiment.trainers.jax_network import (
    Steps,
    TrainState,
    build,
    build_optimizer,
    losses,
    predict,
    run_steps,
    step,
)
from grl.experiment.trainers.jax_processes import find_devices, make_mesh, place, spread
from grl.experiment.trainers.jax_weights import filled, named

if TYPE_CHECKING:
    from jax.stages import Lowered

__all__ = ["Trainer", "versions"]

Tree = TypeVar("Tree")


def versions() -> dict[str, str]:
    """Return the versions of the packages that the figures depend on."""
    return {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__}


class Trainer:
    """A model in training in JAX; its methods are those of `grl.experiment.trainer.Trainer`.

    The k steps of a call are one compiled `lax.scan`. Besides the dispatch this saves fetching fresh memory from the
    system for every step's intermediate arrays, which on the CPU costs as much as a convolution.

    Args:
        architecture: the network.
        config: the run's settings; device, dtype, method, sharding and the optimiser's are read.
        weights: the initial weights, by their PyTorch names.
        processes: the processes that train together; all of them call every method together.

    Raises:
        ConfigError: there is no such device, or the batch or a device cannot be shared as the settings ask.
        CheckpointError: a weight is missing or unknown, or its shape differs.
    """

    def __init__(
        self, architecture: Architecture, config: Config, weights: Weights, processes: Processes = ALONE
    ) -> None:
        self.mesh = make_mesh(find_devices(config.device, processes))
        self.processes, self.devices = processes, self.mesh.size
        check_shares(config.batch_size, self.devices, "devices")
        check_shapes("weights", weights, architecture.shapes())
        self._state_shapes = state_shapes(architecture, config.optimizer)
        self.sharding = config.sharding
        self.dtype = np.dtype(config.dtype)
        self.adapts = config.method == "dann"
        self.model = nnx.eval_shape(lambda: build(architecture))
        self.optimizer = build_optimizer(config)
        self._moments = _MOMENTS[config.optimizer]
        with self._precision():
            _, *states = nnx.split(self.model, nnx.Param, ...)
            params, statistics = (filled(state, weights, self.dtype) for state in states)
            self.train_state = self._spread(TrainState(params, statistics, self.optimizer.init(params)))
        self.model.train()  # type: ignore[no-untyped-call]
        self._graph = nnx.graphdef(self.model)
        self._finite = jnp.array(True)
        self._marked = self.train_state, self._finite
        whole = NamedSharding(self.mesh, PartitionSpec())
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.train_state), whole, whole
        # The state is not donated: `mark` keeps it, so that these steps can be undone.
        one_step = partial(step, self._graph, self.optimizer, self.adapts)
        self._run = jax.jit(partial(run_steps, one_step), out_shardings=shardings)
        self.model.eval()  # type: ignore[no-untyped-call]
        self._predict = jax.jit(partial(predict, nnx.graphdef(self.model)), out_shardings=whole)
        self._gather = jax.jit(lambda state: state, out_shardings=whole)

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
        with self._precision(), self._on_mesh():
            steps = self._place_steps(x, y, x_target, coeffs, rates)
            self.train_state, records, self._finite = self._run(self.train_state, steps)
            return StepRecords(*np.asarray(records))

    def lower(self, x: Array, y: Array, x_target: Array, coeffs: Array, rates: Array) -> Lowered:
        """Return the program that `run` would execute, before it is compiled: its text shows the collectives."""
        with self._precision(), self._on_mesh():
            return self._run.lower(self.train_state, self._place_steps(x, y, x_target, coeffs, rates))

    def report_gradients(self, x: Array, y: Array, x_target: Array, coeff: float) -> DomainGradientReport:
        """Report whether the reversal works in this model, with λ = coeff, on one batch. The model does not change."""
        with self._precision():
            first = self.mesh.devices[0]
            labels = jax.device_put(y.astype(np.int32), first)
            x_first, x_target_first = (jax.device_put(array.astype(self.dtype), first) for array in (x, x_target))
            params, statistics, _ = jax.device_put(self.train_state, first)
            return domain_gradient_report(
                nnx.merge(self._graph, params, statistics, copy=True),
                (x_first, labels, x_target_first, coeff),
                label_loss=lambda model, batch: losses(model, self.adapts, *batch).label,
                domain_loss=lambda model, batch: losses(model, self.adapts, *batch).domain,
                features="backbone",
                coeff=coeff,
            )

    def predict(self, x: Array) -> Prediction:
        """Return features (N, D), class logits (N, num_classes) and domain logits (N,) in evaluation mode."""
        params, statistics, _ = self.train_state
        size = max(len(x), BLOCK)  # up to BLOCK samples the size is always the same, and the program compiled once
        size += -size % self.devices
        filling = np.zeros((size - len(x), *x.shape[1:]), x.dtype)
        samples = np.concatenate([x, filling])[self.processes.part(size)]
        with self._precision(), self._on_mesh():
            outputs = self._predict(params, statistics, self._place(samples, axis=0))
            return Prediction(*(np.asarray(output)[: len(x)] for output in outputs))

    def weights(self) -> Weights:
        """Return the current weights by their PyTorch names, each a contiguous copy."""
        with self._precision():
            params, statistics = self._gather((self.train_state.params, self.train_state.statistics))
        return named(params) | named(statistics)

    def state(self) -> Weights:
        """Return a copy of every array that a step changes; see `grl.experiment.trainer.Trainer.state`."""
        state = {f"model/{name}": array for name, array in self.weights().items()}
        with self._precision():
            optimizer_state = self._gather(self.train_state.optimizer_state)
        for optax_name, moment in self._moments.items():
            tree = optax.tree_utils.tree_get(optimizer_state, optax_name)
            state |= {f"{moment}/{name}": array for name, array in named(tree).items()}
        if "step" in self._state_shapes:
            state["step"] = np.array(optax.tree_utils.tree_get(optimizer_state, "count"), np.int64)
        return state

    def load_state(self, state: Weights) -> None:
        """Continue from a state of the same network and optimiser, from either backend.

        Raises:
            CheckpointError: a name is missing or unknown, or a shape differs.
        """
        check_shapes("state", state, self._state_shapes)
        params, statistics, optimizer_state = self.train_state

        def fill(tree: Tree, kind: str) -> Tree:
            start = f"{kind}/"
            arrays = {name.removeprefix(start): array for name, array in state.items() if name.startswith(start)}
            return filled(tree, arrays, self.dtype)

        with self._precision():
            changed: dict[str, object] = {name: fill(params, moment) for name, moment in self._moments.items()}
            if "step" in state:
                changed["count"] = np.asarray(state["step"], np.int32)
            optimizer_state = optax.tree_utils.tree_set(optimizer_state, **changed)
            loaded = TrainState(fill(params, "model"), fill(statistics, "model"), optimizer_state)
            self.train_state = self._spread(loaded)

    def mark(self) -> None:
        """Remember the present state, on the device, for `rewind`. A later mark replaces it."""
        self._marked = self.train_state, self._finite

    def rewind(self) -> None:
        """Return to the state at the last `mark`."""
        self.train_state, self._finite = self._marked

    def is_finite(self) -> bool:
        """Return whether all weights and statistics are finite."""
        return bool(np.asarray(self._finite))

    def _spread(self, state: TrainState) -> TrainState:
        placed: TrainState = jax.tree.map(lambda leaf: spread(np.asarray(leaf), self.mesh, self.sharding), state)
        return placed

    def _place_steps(self, x: Array, y: Array, x_target: Array, coeffs: Array, rates: Array) -> Steps:
        return Steps(
            place(y.astype(np.int32), self.mesh, axis=1),
            self._place(x, axis=1),
            self._place(x_target, axis=1),
            self._place(coeffs),
            self._place(rates),
        )

    def _place(self, array: Array, axis: int | None = None) -> jax.Array:
        return place(array.astype(self.dtype), self.mesh, axis)

    def _on_mesh(self) -> AbstractContextManager[object]:
        return jax.set_mesh(self.mesh) if self.devices > 1 else nullcontext()

    def _precision(self) -> AbstractContextManager[object]:
        precision: AbstractContextManager[object] = jax.enable_x64(self.dtype == np.float64)
        return precision


_MOMENTS = {"adam": {"mu": "exp_avg", "nu": "exp_avg_sq"}, "sgd": {"trace": "momentum_buffer"}}
"""Optax's name → PyTorch's name of the moments that each optimiser keeps."""
