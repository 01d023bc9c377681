"""The JAX half of a comparison: run an nnx model and record it, forward and backward in one program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import tracers
from jax.extend.core import jaxprs_in_params

from grl.parity.port.recording import LOSS, OUTPUT, Array, Key, Recording
from grl.parity.port.widening import doubled, in_float64, narrows, widen
from grl.parity.reversal import replaced

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
        optimizer: an optax transformation, or an `nnx.Optimizer` that holds one.
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
    ) -> None:
        self.double = double
        self.watched = watched
        self.optimizer = getattr(optimizer, "tx", optimizer)
        self.without_dropout = False
        self._program: Any = None
        self._slots: Any = None
        model = nnx.clone(model)
        if train is not None:
            model.train() if train else model.eval()
        with self._precision():
            if double:
                widen(model)
            self.graph, self.parameters, self.rest = nnx.split(model, nnx.Param, ...)
            if double:
                self.parameters, self.rest = doubled(self.parameters), doubled(self.rest)
            leaves, self._structure = jax.tree.flatten(to_arrays(tuple(inputs), double))
            self.inputs = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
            self._fixed = [None if isinstance(leaf, jax.Array) else leaf for leaf in leaves]  # a mode, a λ: not traced
            self.loss = loss(double)

    def run(self) -> Recording:
        """Run forward and backward, and the optimiser's step if there is one."""
        seen = Recording()
        keys: list[Key] = []

        def forward(parameters: Any, rest: Any, inputs: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(self.graph, parameters, rest, copy=True)  # Variables of this trace, free to change
            traced = Recording()
            with _recording(model, self.watched, traced, self.without_dropout):
                output = model(*self._joined(inputs))
            traced.activations[OUTPUT] = _floats(output)
            value = self.loss(output)
            traced.activations[LOSS] = [value]
            keys[:], seen.dropouts = traced.activations, traced.dropouts
            statistics = nnx.state(model, lambda _, variable: not isinstance(variable, nnx.Param))
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
            seen.gradients = named(gradients)
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

        def step(state: Any, inputs: Any, targets: Any) -> Any:
            parameters, rest, optimizer = state

            def forward(parameters: Any) -> tuple[jax.Array, Any]:
                model = nnx.merge(self.graph, parameters, rest, copy=True)
                with _recording(model, [], Recording(), self.without_dropout):
                    output = model(*self._joined(inputs))
                value = loss(output) if targets is None else loss(output, targets)
                return value, nnx.state(model, lambda _, variable: not isinstance(variable, nnx.Param))

            (value, rest), gradients = jax.value_and_grad(forward, has_aux=True)(parameters)
            updates, optimizer = self.optimizer.update(gradients, optimizer, parameters)
            parameters = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), parameters, updates)
            return (parameters, rest, optimizer), value

        with self._precision():
            arrays = [leaf for leaf in jax.tree.leaves(to_arrays(inputs, self.double)) if isinstance(leaf, jax.Array)]
            if self._program is None:
                self._program = jax.jit(step)
                self._slots = self.optimizer.init(self.parameters)
            state = self.parameters, self.rest, self._slots
            (self.parameters, self.rest, self._slots), value = self._program(
                state, arrays, to_arrays(targets, self.double)
            )
        return float(value)

    def state(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return parameters and running statistics as they are now."""
        statistics = {name: array for name, array in named(self.rest).items() if array.dtype.kind == "f"}
        return named(self.parameters), statistics

    def accepts(self) -> bool:
        """Whether the model takes its inputs, as far as their shapes go."""
        try:
            self._trace()
        except Exception:  # whatever the model raises: it does not take them
            return False
        return True

    def dropouts(self) -> list[float]:
        """Return the rates of the dropouts that are active, in the order of their calls."""
        return self._trace()[0].dropouts

    def reversals(self) -> int:
        """Return how many functions with a backward rule of their own and the identity as value a pass goes through."""
        return _count_reversals(self._trace()[1].jaxpr)

    def _trace(self) -> tuple[Recording, Any]:
        seen = Recording()

        def forward(parameters: Any, rest: Any, inputs: Any) -> Any:
            model = nnx.merge(self.graph, parameters, rest, copy=True)
            with _recording(model, [], seen, self.without_dropout):
                return self.loss(model(*self._joined(inputs)))

        with self._precision():
            return seen, jax.make_jaxpr(forward)(self.parameters, self.rest, self.inputs)

    def _joined(self, arrays: Sequence[jax.Array]) -> tuple[Any, ...]:
        rest = iter(arrays)
        leaves = [next(rest) if leaf is None else leaf for leaf in self._fixed]
        arguments: tuple[Any, ...] = jax.tree.unflatten(self._structure, leaves)
        return arguments

    def _precision(self) -> Any:
        return in_float64() if self.double else nullcontext()


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


@contextmanager
def _recording(model: nnx.Module, names: Sequence[str], seen: Recording, without_dropout: bool) -> Iterator[None]:
    """Record what layers return. Python looks `__call__` up in the class, so it is there that it changes."""
    parts = {".".join(map(str, path)): part for path, part in nnx.iter_modules(model)}
    watched = {id(parts[name]): name for name in names if name in parts}
    kinds = {type(part) for part in parts.values() if id(part) in watched}
    dropouts = {type(part) for part in parts.values() if isinstance(part, nnx.Dropout)}
    outside = tracers.current_jax_trace()
    running: set[int] = set()

    def wrapped(usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if id(self) not in watched or id(self) in running:
                return usual(self, *args, **kwargs)
            running.add(id(self))
            try:
                output = usual(self, *args, **kwargs)
            finally:
                running.remove(id(self))
            if tracers.current_jax_trace() == outside:  # within a scan, a checkpoint … the arrays are not to be had
                seen.record(watched[id(self)], _floats(output))
            return output

        return call

    def dropout(usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, inputs: Any, *, deterministic: bool | None = None, **kwargs: Any) -> Any:
            off = self.deterministic if deterministic is None else deterministic
            if self.rate and not off:
                seen.dropouts.append(float(self.rate))
                if without_dropout:
                    return inputs
            return usual(self, inputs, deterministic=deterministic, **kwargs)

        return call

    def attention(usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, deterministic: bool | None = None, **kwargs: Any) -> Any:
            off = self.deterministic if deterministic is None else deterministic
            if self.dropout_rate and not off:
                seen.dropouts.append(float(self.dropout_rate))
                deterministic = deterministic or without_dropout
            return usual(self, *args, deterministic=deterministic, **kwargs)

        return call

    with ExitStack() as stack:
        for kind in {type(part) for part in parts.values() if isinstance(part, nnx.MultiHeadAttention)}:
            stack.enter_context(replaced(kind, "__call__", attention(kind.__call__)))
        for kind in dropouts:
            stack.enter_context(replaced(kind, "__call__", dropout(kind.__call__)))
        for kind in kinds:
            stack.enter_context(replaced(kind, "__call__", wrapped(kind.__call__)))
        yield


def _floats(output: Any) -> list[Any]:
    leaves = jax.tree.leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)]


def _count_reversals(jaxpr: Any) -> int:
    """How many `custom_vjp`s a program holds whose value is their argument, which is what a reversal is."""
    count = 0
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        if equation.primitive.name.startswith("custom_vjp") and all(_computes_nothing(one) for one in inner):
            count += 1
        else:
            count += sum(_count_reversals(one) for one in inner)
    return count


def _computes_nothing(jaxpr: Any) -> bool:
    inner = [list(jaxprs_in_params(equation.params)) for equation in jaxpr.eqns]
    return all(jaxprs and all(_computes_nothing(one) for one in jaxprs) for jaxprs in inner)
