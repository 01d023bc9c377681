"""The JAX half of a comparison: run an nnx model and record it, forward and backward in one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from grl.port.runs.nnx_float64 import doubled, in_float64, narrows, widen
from grl.port.runs.nnx_layers import count_reversals, floats, recording
from grl.port.runs.recording import LOSS, OUTPUT, Array, Dropout, Key, Recording

__all__ = ["JaxModel", "to_arrays"]


class JaxModel:
    """A copy of an nnx model in one precision, which runs as often as is asked for, each time from the same state.

    Args:
        model: the user's, which stays as it is.
        inputs: the arguments of the call: NumPy arrays, or whatever else the model takes.
        loss: whether in float64 -> a function of the output to a scalar array.
        double: whether to compute in float64; the model's own precision otherwise.
        train: the mode; None: that of the model.
        watched: the names of the layers to record.
        optimizer: an optax transformation, or an `nnx.Optimizer` that holds one, whose `wrt` says what is trained.
        without_dropout: whether dropout is off in any case.
    """

    def __init__(
        self,
        model: nnx.Module,
        inputs: Sequence[Any],
        loss: Callable[[bool], Callable[[Any], jax.Array]],
        *,
        double: bool,
        train: bool | None,
        watched: Sequence[str],
        optimizer: Any = None,
        without_dropout: bool = False,
    ) -> None:
        self.double = double
        self.watched = watched
        self.optimizer = getattr(optimizer, "tx", optimizer)
        self.trained = getattr(optimizer, "wrt", nnx.Param)
        self.without_dropout = without_dropout
        self._programs: dict[str, Any] = {}
        self._slots: Any = None
        model = nnx.clone(model)
        if train is not None:
            model.train() if train else model.eval()
        with self._precision():
            if double:
                widen(model)
            split: Any = nnx.split(model, self.trained, ...)
            graph, parameters, rest = split
            self.graph: Any = graph
            self.parameters: Any = doubled(parameters) if double else parameters
            self.rest: Any = doubled(rest) if double else rest
            self.inputs, self._rebuild = _split(to_arrays(tuple(inputs), double))
            self.loss = loss(double)

    def run(self) -> Recording:
        """Run forward and backward, and the optimiser's step if there is one."""
        seen = Recording()
        keys: list[Key] = []

        def forward(parameters: Any, rest: Any, inputs: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(self.graph, parameters, rest, copy=True)  # Variables of this trace, free to change
            traced = Recording()
            with recording(model, self.watched, traced, self.without_dropout):
                output = model(*self._rebuild(inputs))
            traced.activations[OUTPUT] = floats(output)
            value = self.loss(output)
            traced.activations[LOSS] = [value]
            keys[:], seen.dropouts = traced.activations, traced.dropouts
            statistics = self._rest_of(model)
            return value, (list(traced.activations.values()), statistics)

        def step(parameters: Any, rest: Any, inputs: Any) -> Any:
            (_, (activations, statistics)), gradients = jax.value_and_grad(forward, has_aux=True)(
                parameters, rest, inputs
            )
            updates = None
            if self.optimizer is not None:
                updates, _ = self.optimizer.update(gradients, self.optimizer.init(parameters), parameters)
            return activations, gradients, statistics, updates

        with self._precision():
            arguments = self.parameters, self.rest, self.inputs
            # It runs once, so that a quick compilation is worth more than a quick program.
            traced = jax.jit(step).trace(*arguments)
            seen.narrow = self.double and narrows(traced.jaxpr.jaxpr)
            compiled = traced.lower().compile(compiler_options={"xla_backend_optimization_level": 0})
            activations, gradients, statistics, updates = compiled(*arguments)
            seen.activations = {
                key: [np.asarray(array) for array in arrays] for key, arrays in zip(keys, activations, strict=True)
            }
            # Of a complex number JAX gives ∂/∂x − i·∂/∂y, PyTorch the conjugate, along which a loss rises.
            seen.gradients = {name: array.conj() for name, array in named(gradients).items()}
            seen.statistics = {name: array for name, array in named(statistics).items() if array.dtype.kind == "f"}
            seen.updates = {} if updates is None else named(updates)
        return seen

    def train(self, inputs: Sequence[Any], targets: Any, loss: Callable[..., jax.Array]) -> float:
        """Take a step of training, which the model keeps; return the loss before it.

        Args:
            inputs: the model's arguments.
            targets: the loss's second argument; None: it has none.
            loss: a function of the output and of the targets.
        """

        def step(state: Any, arrays: Any, targets: Any) -> Any:
            parameters, rest, optimizer = state

            def forward(parameters: Any) -> tuple[jax.Array, Any]:
                model = nnx.merge(self.graph, parameters, rest, copy=True)
                with recording(model, [], Recording(), self.without_dropout):
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
            arrays, rebuild = _split(to_arrays(numbers, self.double))
            fixed = repr([leaf for leaf in jax.tree.leaves(numbers) if not isinstance(leaf, np.ndarray)])
            program = self._programs.setdefault(fixed, jax.jit(step))
            if self._slots is None:
                self._slots = self.optimizer.init(self.parameters)
            state = self.parameters, self.rest, self._slots
            state, value = program(state, arrays, to_arrays(targets, self.double))
            self.parameters, self.rest, self._slots = state
        return float(value)

    def state(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return parameters, those that are not trained too, and running statistics as they are now."""
        fixed = named(nnx.filter_state(self.rest, nnx.Param))
        rest = named(self.rest)
        statistics = {name: array for name, array in rest.items() if array.dtype.kind == "f" and name not in fixed}
        return named(self.parameters) | fixed, statistics

    def accepts(self) -> bool:
        """Whether the model takes its inputs, as far as their shapes go."""
        try:
            self._trace()
        except Exception:  # whatever the model raises: it does not take them
            return False
        return True

    def dropouts(self) -> list[Dropout]:
        """Return the dropouts that are active, in the order of their calls."""
        return self._trace()[0].dropouts

    def reversals(self) -> int:
        """Return how many functions with a backward rule of their own and the identity as value a pass goes through."""
        return count_reversals(self._trace()[1].jaxpr)

    def _trace(self) -> tuple[Recording, Any]:
        seen = Recording()

        def forward(parameters: Any, rest: Any, inputs: Any) -> Any:
            model = nnx.merge(self.graph, parameters, rest, copy=True)
            with recording(model, [], seen, self.without_dropout):
                return self.loss(model(*self._rebuild(inputs)))

        with self._precision():
            return seen, jax.make_jaxpr(forward)(self.parameters, self.rest, self.inputs)

    def _rest_of(self, model: nnx.Module) -> Any:
        """The state of all that is not trained."""
        return nnx.split(model, self.trained, ...)[2]  # type: ignore[misc]

    def _precision(self) -> Any:
        return in_float64() if self.double else nullcontext()


def _split(tree: Any) -> tuple[list[jax.Array], Callable[[Any], Any]]:
    """Return the arrays of a pytree, which can be traced, and what puts others in their places."""
    leaves, structure = jax.tree.flatten(tree)

    def rebuild(arrays: Sequence[jax.Array]) -> Any:
        rest = iter(arrays)
        return jax.tree.unflatten(structure, [next(rest) if isinstance(a, jax.Array) else a for a in leaves])

    return [leaf for leaf in leaves if isinstance(leaf, jax.Array)], rebuild


def to_arrays(values: Any, double: bool) -> Any:
    """Return a pytree with JAX arrays for its NumPy arrays, without a copy where precision and device allow."""

    def convert(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.kind in "iu":
            return jnp.asarray(value.astype(np.int32))
        return jnp.asarray(value.astype(np.float64) if double and value.dtype.kind == "f" else value)

    return jax.tree.map(convert, values)


def named(tree: Any) -> dict[str, Array]:
    """Return the arrays of an nnx state by the names of their places, such as "layers.0.kernel"."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path]
        if isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":  # inside an nnx Variable
            keys.pop()
        if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            found[".".join(map(str, keys))] = np.asarray(leaf)
    return found
