"""The network of an experiment in JAX, its optimiser, its losses and its step, as pure functions to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from grl.experiment.architecture import Architecture
from grl.experiment.config import Config
from grl.jax_impl.dann import DANN, MLP, ConvNet

__all__ = ["Losses", "Steps", "TrainState", "build", "build_optimizer", "losses", "predict", "run_steps", "step"]


State: TypeAlias = "nnx.State[Any, Any]"
"""Variables of a model, as `nnx.split` returns them."""


class TrainState(NamedTuple):
    """Everything that a step changes.

    Args:
        params: the parameters.
        statistics: batch norm's running statistics.
        optimizer_state: the state of the optax optimiser.
    """

    params: State
    statistics: State
    optimizer_state: optax.OptState


class Steps(NamedTuple):
    """The arguments of k steps, each (k, ...); in a step of `lax.scan`, those of one."""

    y: jax.Array
    x: jax.Array
    x_target: jax.Array
    coeff: jax.Array
    rates: jax.Array


class Losses(NamedTuple):
    """The losses of a batch, scalars, and its class logits (B, num_classes)."""

    label: jax.Array
    domain: jax.Array
    class_logits: jax.Array


_Record = tuple[jax.Array, jax.Array, jax.Array]
"""The label loss, domain loss and accuracy of a step, scalars."""


def run_steps(
    step: Callable[[TrainState, Steps], tuple[TrainState, _Record]], state: TrainState, steps: Steps
) -> tuple[TrainState, jax.Array, jax.Array]:
    """Return the state after the steps, their records (3, k), and whether the weights and statistics are finite."""
    state, records = lax.scan(step, state, steps)
    leaves = jax.tree.leaves((state.params, state.statistics))
    finite = jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]).all()
    return state, jnp.stack(records), finite


def step(
    graph: nnx.GraphDef[DANN],
    optimizer: optax.GradientTransformation,
    adapts: bool,
    state: TrainState,
    batch: Steps,
) -> tuple[TrainState, _Record]:
    """Return the state after one update, and the losses and accuracy of the batch before it.

    Args:
        graph: the structure of the model in training mode.
        optimizer: the direction of the update; the batch holds the learning rates.
        adapts: whether the domain loss is trained on.
        state: the state before the update.
        batch: the arguments of one step.
    """
    y, x, x_target, coeff, rates = batch

    def total(params: State) -> tuple[jax.Array, tuple[State, _Record]]:
        model = nnx.merge(graph, params, state.statistics, copy=True)  # Variables of this trace, free to change
        label_loss, domain_loss, class_logits = losses(model, adapts, x, y, x_target, coeff)
        loss = label_loss + domain_loss if adapts else label_loss
        accuracy = (class_logits.argmax(1) == y).mean(dtype=class_logits.dtype)
        return loss, (nnx.state(model, nnx.Not(nnx.Param)), (label_loss, domain_loss, accuracy))

    gradients, (statistics, record) = jax.grad(total, has_aux=True)(state.params)
    directions, optimizer_state = optimizer.update(gradients, state.optimizer_state)

    def updated(path: tuple[Any, ...], parameter: jax.Array, direction: jax.Array) -> jax.Array:
        rate: jax.Array = rates[0 if path[0].key == "backbone" else 1]
        return parameter - rate * direction

    params = jax.tree_util.tree_map_with_path(updated, state.params, directions)
    return TrainState(params, statistics, optimizer_state), record


def losses(
    model: DANN, adapts: bool, x: jax.Array, y: jax.Array, x_target: jax.Array, coeff: jax.Array | float
) -> Losses:
    """Return the mean losses of a batch.

    Args:
        model: the network.
        adapts: whether to compute the domain loss, which is NaN otherwise.
        x: labelled inputs (B, ...).
        y: their labels (B,).
        x_target: target inputs (B, ...).
        coeff: λ.
    """
    class_logits, source_logits = model(x, coeff)
    label_loss = optax.softmax_cross_entropy_with_integer_labels(class_logits, y).mean()
    if not adapts:
        return Losses(label_loss, jnp.full_like(label_loss, jnp.nan), class_logits)
    _, target_logits = model(x_target, coeff)  # a call of its own: batch norm must see one domain at a time
    logits = jnp.stack([source_logits, target_logits])  # concatenated, samples would have to move between devices
    domains = jnp.stack([jnp.zeros_like(source_logits), jnp.ones_like(target_logits)])
    return Losses(label_loss, optax.sigmoid_binary_cross_entropy(logits, domains).mean(), class_logits)


def predict(
    graph: nnx.GraphDef[DANN], params: State, statistics: State, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return features (N, D), class logits (N, num_classes) and domain logits (N,)."""
    model = nnx.merge(graph, params, statistics, copy=True)  # Variables of this trace, free to change
    features = model.backbone(x)
    return features, model.label_classifier(features), model.domain_classifier(features)[:, 0]


def build(architecture: Architecture) -> DANN:
    """Return the network, with weights that the trainer replaces."""
    rngs = nnx.Rngs(0)  # never drawn from: the initial weights are an argument
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


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """Return the optimiser of a step's direction; `step` applies the learning rates, which differ by part."""
    rule = optax.trace(config.momentum) if config.optimizer == "sgd" else optax.scale_by_adam()
    if config.clip_norm is None:
        return rule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
