"""The JAX half of an experiment: a `DANN` with its optimiser, fed with NumPy arrays by `grl.experiment`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from numpy.typing import NDArray

from grl.architecture import Architecture, Weights
from grl.jax_impl.dann import DANN, MLP, ConvNet
from grl.parity import DomainGradientReport, domain_gradient_report
from grl.parity.port.portable import portable_weights, set_portable_weights

if TYPE_CHECKING:
    from grl.experiment import Config

__all__ = ["Trainer", "versions"]

Array = NDArray[Any]
_EVALUATION_BATCH = 500


def versions() -> dict[str, str]:
    """The versions of the packages that the figures depend on."""
    return {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__}


class Trainer:
    """A model in training: the same methods, with the same arrays in and out, as in `grl.torch_impl.training`.

    The k steps of a call are one compiled `lax.scan`: besides the dispatch this saves fetching fresh memory from the
    system for every step's intermediate arrays, which on the CPU costs as much as a convolution.

    Args:
        architecture: the network.
        config: the run's settings; device, dtype, method and the optimiser's are read.
        weights: the initial weights, by their PyTorch names.

    Raises:
        LookupError: there is no such device.
    """

    def __init__(self, architecture: Architecture, config: Config, weights: Weights) -> None:
        self.device = _find_device(config.device)
        self.dtype = np.dtype(config.dtype)
        self.adapts = config.method == "dann"
        self.model = nnx.eval_shape(lambda: _build(architecture))
        self.optimizer = _build_optimizer(config)
        with self._precision():
            nnx.update(self.model, jax.tree.map(self._abstract, nnx.state(self.model)))
            set_portable_weights(self.model, weights, flatten={})
            states: Any = nnx.split(self.model, nnx.Param, ...)
            params, statistics = states[1:]
            self._state = jax.device_put((params, statistics, self.optimizer.init(params)), self.device)
            self.model.train()  # type: ignore[no-untyped-call]
            self._graph = nnx.graphdef(self.model)
            step = partial(_step, self._graph, self.optimizer, self.adapts)
            self._run = jax.jit(partial(lax.scan, step), donate_argnums=0)
            self.model.eval()  # type: ignore[no-untyped-call]
            self._predict = jax.jit(partial(_predict, nnx.graphdef(self.model)))

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
        with self._precision():
            floats = [self._array(array) for array in (x, x_target, coeffs, rates)]
            labels = jax.device_put(y.astype(np.int32), self.device)
            self._state, records = self._run(self._state, (labels, *floats))
            label_loss, domain_loss, accuracy = (np.asarray(record) for record in records)
        return label_loss, domain_loss, accuracy

    def report_gradients(self, x: Array, y: Array, x_target: Array, coeff: float) -> DomainGradientReport:
        """Return whether the reversal works in this model, with λ = coeff, on one batch; changes nothing."""
        params, statistics, _ = self._state
        with self._precision():
            labels = jax.device_put(y.astype(np.int32), self.device)
            return domain_gradient_report(
                nnx.merge(self._graph, params, statistics, copy=True),
                (self._array(x), labels, self._array(x_target), coeff),
                label_loss=lambda model, batch: _losses(model, self.adapts, *batch)[0],
                domain_loss=lambda model, batch: _losses(model, self.adapts, *batch)[1],
                features="backbone",
                coeff=coeff,
            )

    def predict(self, x: Array) -> tuple[Array, Array, Array]:
        """Return features (N, D), class logits (N, num_classes) and domain logits (N,) in evaluation mode."""
        params, statistics, _ = self._state
        parts = []
        for start in range(0, len(x), _EVALUATION_BATCH):
            batch = x[start : start + _EVALUATION_BATCH]
            filled = np.concatenate([batch, np.zeros((_EVALUATION_BATCH - len(batch), *x.shape[1:]), x.dtype)])
            with self._precision():  # always the same size: compiled once
                outputs = self._predict(params, statistics, self._array(filled))
                parts.append([np.asarray(output)[: len(batch)] for output in outputs])
        features, class_logits, domain_logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return features, class_logits, domain_logits

    def weights(self) -> Weights:
        """Return the weights as they are now, by their PyTorch names, each a contiguous copy."""
        params, statistics, _ = self._state
        model = nnx.merge(self._graph, params, statistics, copy=True)
        return {name: np.array(array, order="C") for name, array in portable_weights(model, flatten={}).items()}

    def _abstract(self, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, self.dtype)

    def _array(self, array: Array) -> jax.Array:
        placed: jax.Array = jax.device_put(array.astype(self.dtype), self.device)
        return placed

    def _precision(self) -> Any:
        return jax.enable_x64(self.dtype == np.float64)


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
    logits = jnp.concatenate([source_logits, target_logits])
    domains = jnp.concatenate([jnp.zeros_like(source_logits), jnp.ones_like(target_logits)])
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


def _find_device(name: str) -> jax.Device:
    devices = dict.fromkeys([*jax.devices(), *jax.devices("cpu")])
    present = {f"{device.platform}:{device.id}": device for device in devices}
    kind, _, index = name.partition(":")
    device = f"{'gpu' if kind == 'cuda' else kind}:{index or 0}"
    if device not in present:
        raise LookupError(f"no such device for JAX here: {name!r}; present: {', '.join(present)}")
    return present[device]
