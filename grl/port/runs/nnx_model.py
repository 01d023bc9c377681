"""The JAX half of a comparison: run an nnx model and record it, forward and backward in one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Jaxpr

from grl.port.runs.nnx_arrays import named, split_arrays, to_arrays
from grl.port.runs.nnx_float64 import doubled, in_float64, narrows, widen, widens
from grl.port.runs.nnx_layers import Trace, count_reversals, floats, recording
from grl.port.runs.perturbation import moved
from grl.port.runs.recording import LOSS, OUTPUT, Array, Dropout, Recording, RunSettings

__all__ = ["JaxModel"]

Tree: TypeAlias = Any
"""A pytree of arrays, such as the state of an nnx module: JAX has no type for it."""


class JaxModel:
    """A copy of an nnx model in one precision, which runs as often as it is asked to, each time from the same state.

    Args:
        model: the user's, which stays as it is.
        inputs: the arguments of the call: NumPy arrays, or whatever else the model takes.
        loss: whether in float64 -> a function of the output to a scalar array.
        settings: precision, mode, and which layers to record.
        optimizer: an optax transformation, or an `nnx.Optimizer` that holds one, whose `wrt` selects the trained
            parameters; None: no step.
    """

    def __init__(
        self,
        model: nnx.Module,
        inputs: Sequence[object],
        loss: Callable[[bool], Callable[[Any], jax.Array]],
        settings: RunSettings,
        optimizer: Any = None,
    ) -> None:
        self.settings = settings
        self.optimizer = getattr(optimizer, "tx", optimizer)
        self.trained = getattr(optimizer, "wrt", nnx.Param)
        self._programs: dict[str, Callable[..., Any]] = {}
        self._program: _Program | None = None
        self._slots: Tree = None
        model = nnx.clone(model)
        if settings.train is not None:
            model.train() if settings.train else model.eval()
        with self._precision():
            if settings.double:
                widen(model)
            split: Tree = nnx.split(model, self.trained, ...)
            self.graph, parameters, rest = split
            self.parameters = doubled(parameters) if settings.double else parameters
            self.rest = doubled(rest) if settings.double else rest
            self.inputs, self._rebuild = split_arrays(to_arrays(tuple(inputs), settings.double))
            self.loss = loss(settings.double)

    def run(self, without_dropout: bool = False) -> Recording:
        """Run forward and backward, and the optimiser's step if there is one.

        Args:
            without_dropout: whether dropout is off in any case.
        """
        self._program = self._compiled(without_dropout or self.settings.without_dropout)
        return self._program(self.parameters, self.rest, self.inputs)

    def perturbed(self, seed: int) -> Recording:
        """Run the program of the last run, with inputs and parameters moved by a unit in the last place."""
        assert self._program is not None
        generator = np.random.default_rng(seed)

        def move(leaf: jax.Array) -> jax.Array:
            return leaf if leaf.dtype != np.float64 else jnp.asarray(moved(np.asarray(leaf), generator))

        with self._precision():
            parameters, inputs = jax.tree.map(move, (self.parameters, self.inputs))
        return self._program(parameters, self.rest, inputs)

    def _compiled(self, without_dropout: bool) -> _Program:
        """Return the program of a run, which takes parameters, the rest of the state, and inputs."""
        trace = Trace()

        def forward(parameters: Tree, rest: Tree, inputs: Tree) -> tuple[jax.Array, Tree]:
            model = nnx.merge(self.graph, parameters, rest, copy=True)  # Variables of this trace, free to change
            trace.activations, trace.dropouts = {}, []
            with recording(model, self.settings.watched, trace, without_dropout):
                output = model(*self._rebuild(inputs))
            trace.activations[OUTPUT] = floats(output)
            value = self.loss(output)
            trace.activations[LOSS] = [value]
            return value, (list(trace.activations.values()), self._rest_of(model))

        def step(parameters: Tree, rest: Tree, inputs: Tree) -> Tree:
            differentiated = jax.value_and_grad(forward, has_aux=True)
            (_, (activations, statistics)), gradients = differentiated(parameters, rest, inputs)
            updates = None
            if self.optimizer is not None:
                updates, _ = self.optimizer.update(gradients, self.optimizer.init(parameters), parameters)
            return activations, gradients, statistics, updates

        with self._precision():
            # It runs a few times only, so that a quick compilation is worth more than a quick program.
            traced = jax.jit(step).trace(self.parameters, self.rest, self.inputs)
            narrow = self.settings.double and narrows(traced.jaxpr.jaxpr)
            narrow_step = self.settings.double and self.steps_in_float32()
            compiled = traced.lower().compile(compiler_options={"xla_backend_optimization_level": 0})

        def run(parameters: Tree, rest: Tree, inputs: Tree) -> Recording:
            with self._precision():
                activations, gradients, statistics, updates = compiled(parameters, rest, inputs)
            pairs = zip(trace.activations, activations, strict=True)
            return Recording(
                activations={key: [np.asarray(array) for array in arrays] for key, arrays in pairs},
                # Of a complex number JAX gives ∂/∂x − i·∂/∂y, PyTorch the conjugate, along which a loss rises.
                gradients={name: array.conj() for name, array in named(gradients).items()},
                statistics={name: array for name, array in named(statistics).items() if array.dtype.kind == "f"},
                updates={} if updates is None else named(updates),
                dropouts=trace.dropouts,
                narrow=narrow,
                narrow_step=narrow_step,
            )

        return run

    def steps_in_float32(self) -> bool:
        """Return whether the optimiser computes in float32, such as a learning rate from the number of the step."""
        if self.optimizer is None or not self.settings.double:
            return False

        def update(parameters: Tree) -> Tree:
            return self.optimizer.update(parameters, self.optimizer.init(parameters), parameters)[0]

        with self._precision():
            jaxpr = jax.make_jaxpr(update)(self.parameters).jaxpr
        return narrows(jaxpr) or widens(jaxpr)

    def train(self, inputs: Sequence[object], targets: Tree, loss: Callable[..., jax.Array]) -> float:
        """Take a step of training, which changes the model; return the loss before it.

        Args:
            inputs: the model's arguments.
            targets: the loss's second argument; None: it has none.
            loss: a function of the output and of the targets.
        """

        def step(state: Tree, arrays: Tree, targets: Tree) -> Tree:
            parameters, rest, optimizer = state

            def forward(parameters: Tree) -> tuple[jax.Array, Tree]:
                model = nnx.merge(self.graph, parameters, rest, copy=True)
                with recording(model, (), Trace(), self.settings.without_dropout):
                    output = model(*rebuild(arrays))
                value = loss(output) if targets is None else loss(output, targets)
                return value, self._rest_of(model)

            (value, rest), gradients = jax.value_and_grad(forward, has_aux=True)(parameters)
            updates, optimizer = self.optimizer.update(gradients, optimizer, parameters)
            parameters = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), parameters, updates)
            return (parameters, rest, optimizer), value

        with self._precision():
            # A number such as λ may change from step to step; a mode may too, and is another program then.
            numbers = jax.tree.map(lambda leaf: np.asarray(leaf) if type(leaf) is float else leaf, inputs)
            arrays, rebuild = split_arrays(to_arrays(numbers, self.settings.double))
            fixed = repr([leaf for leaf in jax.tree.leaves(numbers) if not isinstance(leaf, np.ndarray)])
            program = self._programs.setdefault(fixed, jax.jit(step))
            if self._slots is None:
                self._slots = self.optimizer.init(self.parameters)
            state = self.parameters, self.rest, self._slots
            state, value = program(state, arrays, to_arrays(targets, self.settings.double))
            self.parameters, self.rest, self._slots = state
        return float(value)

    def state(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return parameters, those that are not trained too, and running statistics as they are now."""
        fixed = named(nnx.filter_state(self.rest, nnx.Param))
        rest = named(self.rest)
        statistics = {name: array for name, array in rest.items() if array.dtype.kind == "f" and name not in fixed}
        return named(self.parameters) | fixed, statistics

    def accepts(self) -> bool:
        """Return whether the model takes its inputs, as far as their shapes go."""
        try:
            self._trace()
        except Exception:  # a model may raise any error for a shape that it does not take
            return False
        return True

    def dropouts(self) -> list[Dropout]:
        """Return the dropouts that are active, in the order of their calls."""
        return self._trace()[0].dropouts

    def reversals(self) -> int:
        """Return how many functions with a backward rule of their own have the identity as value."""
        return count_reversals(self._trace()[1])

    def _trace(self) -> tuple[Trace, Jaxpr]:
        trace = Trace()

        def forward(parameters: Tree, rest: Tree, inputs: Tree) -> Tree:
            model = nnx.merge(self.graph, parameters, rest, copy=True)
            with recording(model, (), trace, self.settings.without_dropout):
                return self.loss(model(*self._rebuild(inputs)))

        with self._precision():
            return trace, jax.make_jaxpr(forward)(self.parameters, self.rest, self.inputs).jaxpr

    def _rest_of(self, model: nnx.Module) -> Tree:
        """The state of everything that is not trained."""
        return nnx.split(model, self.trained, ...)[2]  # type: ignore[misc]

    def _precision(self) -> AbstractContextManager[None]:
        return in_float64() if self.settings.double else nullcontext()


_Program = Callable[[Tree, Tree, Tree], Recording]
"""A compiled run: of parameters, the rest of the state, and inputs."""
