"""The JAX half of an experiment: a `DANN` with its optimiser, fed with NumPy arrays by `grl.experiment`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from grl.arrays import Array, Weights
from grl.diagnosis.gradient_report import DomainGradientReport, domain_gradient_report
from grl.experiment.architecture import Architecture
from grl.experiment.processes import ALONE, Processes, check_shares
from grl.experiment.trainers.jax_processes import find_devices, make_mesh, place, spread
from grl.jax_impl.dann import DANN, MLP, ConvNet

if TYPE_CHECKING:
    from grl.experiment import Config

__all__ = ["Trainer", "versions"]

_EVALUATION_BATCH = 500


def versions() -> dict[str, str]:
    """The versions of the packages that the figures depend on."""
    return {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__}


class Trainer:
    """A model in training: the same methods, with the same arrays in and out, as in `torch_trainer`.

    The k steps of a call are one compiled `lax.scan`: besides the dispatch this saves fetching fresh memory from the
    system for every step's intermediate arrays, which on the CPU costs as much as a convolution.

    Args:
        architecture: the network.
        config: the run's settings; device, dtype, method and the optimiser's are read.
        weights: the initial weights, by their PyTorch names.
        processes: those that train together, which then call every method together.

    Raises:
        LookupError: there is no such device.
        ConfigError: the batch cannot be dealt out to the devices, or a device to the processes.
    """

    def __init__(
        self, architecture: Architecture, config: Config, weights: Weights, processes: Processes = ALONE
    ) -> None:
        self.mesh = make_mesh(find_devices(config.device, processes))
        self.processes, self.devices = processes, self.mesh.size
        check_shares(config.batch_size, self.devices, "devices")
        self.sharding = config.sharding
        self.dtype = np.dtype(config.dtype)
        self.adapts = config.method == "dann"
        self.model = nnx.eval_shape(lambda: _build(architecture))
        self.optimizer = _build_optimizer(config)
        self._moments = ("trace",) if config.optimizer == "sgd" else ("mu", "nu")
        with self._precision():
            states: Any = nnx.split(self.model, nnx.Param, ...)
            params, statistics = (self._fill(state, weights) for state in states[1:])
            self._state = self._spread((params, statistics, self.optimizer.init(params)))
        self.model.train()  # type: ignore[no-untyped-call]
        self._graph = nnx.graphdef(self.model)
        self._finite = jnp.array(True)
        whole = NamedSharding(self.mesh, PartitionSpec())
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self._state), whole, whole
        # The state is not donated: `mark` holds it for the case that these steps have to be undone.
        step = partial(_step, self._graph, self.optimizer, self.adapts)
        self._run = jax.jit(partial(_steps, step), out_shardings=shardings)
        self.model.eval()  # type: ignore[no-untyped-call]
        self._predict = jax.jit(partial(_predict, nnx.graphdef(self.model)), out_shardings=whole)
        self._gather = jax.jit(lambda state: state, out_shardings=whole)

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
        with self._precision(), self._on_mesh():
            labels = place(y.astype(np.int32), self.mesh, axis=1)
            floats = [self._place(x, axis=1), self._place(x_target, axis=1), self._place(coeffs), self._place(rates)]
            self._state, records, self._finite = self._run(self._state, (labels, *floats))
            label_loss, domain_loss, accuracy = np.asarray(records)
        return label_loss, domain_loss, accuracy

    def report_gradients(self, x: Array, y: Array, x_target: Array, coeff: float) -> DomainGradientReport:
        """Return whether the reversal works in this model, with λ = coeff, on one batch; changes nothing."""
        with self._precision():
            first = self.mesh.devices[0]
            labels = jax.device_put(y.astype(np.int32), first)
            params, statistics, _ = jax.device_put(self._state, first)
            return domain_gradient_report(
                nnx.merge(self._graph, params, statistics, copy=True),
                (
                    jax.device_put(x.astype(self.dtype), first),
                    labels,
                    jax.device_put(x_target.astype(self.dtype), first),
                    coeff,
                ),
                label_loss=lambda model, batch: _losses(model, self.adapts, *batch)[0],
                domain_loss=lambda model, batch: _losses(model, self.adapts, *batch)[1],
                features="backbone",
                coeff=coeff,
            )

    def predict(self, x: Array) -> tuple[Array, Array, Array]:
        """Return features (N, D), class logits (N, num_classes) and domain logits (N,) in evaluation mode."""
        params, statistics, _ = self._state
        size = _EVALUATION_BATCH + -_EVALUATION_BATCH % self.devices  # always the same: compiled once
        part = self.processes.part(size)
        parts = []
        for start in range(0, len(x), size):
            batch = x[start : start + size]
            filled = np.concatenate([batch, np.zeros((size - len(batch), *x.shape[1:]), x.dtype)])
            with self._precision(), self._on_mesh():
                outputs = self._predict(params, statistics, self._place(filled[part], axis=0))
                parts.append([np.asarray(output)[: len(batch)] for output in outputs])
        features, class_logits, domain_logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return features, class_logits, domain_logits

    def weights(self) -> Weights:
        """Return the weights as they are now, by their PyTorch names, each a contiguous copy."""
        with self._precision():
            params, statistics = self._gather(self._state[:2])
        return _named(params) | _named(statistics)

    def state(self) -> Weights:
        """Return copies of all that a step changes: `model/NAME`, the moments, as `exp_avg/NAME`, and Adam's `step`."""
        state = {f"model/{name}": array for name, array in self.weights().items()}
        with self._precision():
            optimizer_state = self._gather(self._state[2])
        for kind in self._moments:
            moment = optax.tree_utils.tree_get(optimizer_state, kind)
            state |= {f"{_TORCH_MOMENTS[kind]}/{name}": array for name, array in _named(moment).items()}
        if "mu" in self._moments:
            state["step"] = np.array(optax.tree_utils.tree_get(optimizer_state, "count"), np.int64)
        return state

    def load_state(self, state: Weights) -> None:
        """Go on from what `state` has returned, here or in PyTorch, for the same network and optimiser."""
        params, statistics, optimizer_state = self._state

        def fill(tree: Any, part: str) -> Any:
            named = {
                name.removeprefix(f"{part}/"): array for name, array in state.items() if name.startswith(f"{part}/")
            }
            return self._fill(tree, named)

        with self._precision():
            moments = {kind: fill(params, _TORCH_MOMENTS[kind]) for kind in self._moments}
            if "mu" in moments:
                moments["count"] = np.asarray(state["step"], np.int32)
            optimizer_state = optax.tree_utils.tree_set(optimizer_state, **moments)
            self._state = self._spread((fill(params, "model"), fill(statistics, "model"), optimizer_state))

    def mark(self) -> Any:
        """Return what `rewind` takes: all that a step changes, on the device."""
        return self._state, self._finite

    def rewind(self, mark: Any) -> None:
        """Undo the steps since a mark."""
        self._state, self._finite = mark

    def is_finite(self) -> bool:
        """Return whether all weights and statistics are finite."""
        return bool(np.asarray(self._finite))

    def _spread(self, state: Any) -> Any:
        return jax.tree.map(lambda leaf: spread(np.asarray(leaf), self.mesh, self.sharding), state)

    def _fill(self, state: Any, weights: Weights) -> Any:
        def leaf(path: Any, abstract: Any) -> Array:
            return _transpose(weights[_torch_name(path)], inverse=True).astype(self.dtype)

        return jax.tree_util.tree_map_with_path(leaf, state)

    def _place(self, array: Array, axis: int | None = None) -> jax.Array:
        return place(array.astype(self.dtype), self.mesh, axis)

    def _on_mesh(self) -> Any:
        return jax.set_mesh(self.mesh) if self.devices > 1 else nullcontext()

    def _precision(self) -> Any:
        return jax.enable_x64(self.dtype == np.float64)


def _steps(step: Any, state: Any, batches: Any) -> tuple[Any, Any, jax.Array]:
    """Return the state after the steps, what they record, and whether the weights and statistics are finite."""
    state, records = lax.scan(step, state, batches)
    finite = jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state[:2])]).all()
    return state, jnp.stack(records), finite


def _step(graph: Any, optimizer: Any, adapts: bool, state: Any, batch: Any) -> tuple[Any, Any]:
    params, statistics, optimizer_state = state
    y, x, x_target, coeff, rates = batch

    def losses(params: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, statistics, copy=True)  # Variables of this trace, free to change
        label_loss, domain_loss, class_logits = _losses(model, adapts, x, y, x_target, coeff)
        loss = label_loss + domain_loss if adapts else label_loss
        accuracy = (class_logits.argmax(1) == y).mean(dtype=class_logits.dtype)
        return loss, (nnx.state(model, nnx.Not(nnx.Param)), (label_loss, domain_loss, accuracy))

    gradients, (statistics, record) = jax.grad(losses, has_aux=True)(params)
    directions, optimizer_state = optimizer.update(gradients, optimizer_state)

    def updated(path: Any, parameter: jax.Array, direction: jax.Array) -> jax.Array:
        rate: jax.Array = rates[0 if path[0].key == "backbone" else 1]
        return parameter - rate * direction

    params = jax.tree_util.tree_map_with_path(updated, params, directions)
    return (params, statistics, optimizer_state), record


def _losses(
    model: DANN, adapts: bool, x: jax.Array, y: jax.Array, x_target: jax.Array, coeff: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    class_logits, source_logits = model(x, coeff)
    label_loss = optax.softmax_cross_entropy_with_integer_labels(class_logits, y).mean()
    if not adapts:
        return label_loss, jnp.full_like(label_loss, jnp.nan), class_logits
    _, target_logits = model(x_target, coeff)  # on its own: batch norm sees one domain at a time
    logits = jnp.stack([source_logits, target_logits])  # one after the other, they would change places between devices
    domains = jnp.stack([jnp.zeros_like(source_logits), jnp.ones_like(target_logits)])
    return label_loss, optax.sigmoid_binary_cross_entropy(logits, domains).mean(), class_logits


def _predict(graph: Any, params: Any, statistics: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    model = nnx.merge(graph, params, statistics, copy=True)  # Variables of this trace, free to change
    features = model.backbone(x)
    return features, model.label_classifier(features), model.domain_classifier(features)[:, 0]


def _build(architecture: Architecture) -> DANN:
    rngs = nnx.Rngs(0)  # never drawn from: the weights come from outside
    backbone: ConvNet | MLP
    if architecture.is_image:
        backbone = ConvNet(
            architecture.sample_shape, architecture.channels, architecture.kernel_size, architecture.padding, rngs=rngs
        )
    else:
        backbone = MLP(architecture.sample_shape[0], architecture.hidden, rngs=rngs)
    return DANN(
        backbone,
        architecture.num_classes,
        label_hidden=architecture.label_hidden,
        domain_hidden=architecture.domain_hidden,
        rngs=rngs,
    )


def _build_optimizer(config: Config) -> optax.GradientTransformation:
    """The direction of a step; the learning rates, which change and differ between the parts, come later."""
    rule = optax.trace(config.momentum) if config.optimizer == "sgd" else optax.scale_by_adam()
    if config.clip_norm is None:
        return rule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


_TORCH_MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer"}
_TORCH_PARTS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _torch_name(path: Any) -> str:
    keys = [str(key.key) for key in path if hasattr(key, "key")]
    return ".".join([*keys[:-1], _TORCH_PARTS.get(keys[-1], keys[-1])])


def _named(tree: Any) -> Weights:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {_torch_name(path): np.array(_transpose(np.asarray(leaf)), order="C") for path, leaf in paths}


def _transpose(array: Array, inverse: bool = False) -> Array:
    """From nnx's layout (HWIO; in, out) to PyTorch's (OIHW; out, in), or back."""
    if array.ndim == 4:
        return array.transpose((2, 3, 1, 0) if inverse else (3, 2, 0, 1))
    return array.T
