"""Calls are watched on the chosen objects alone: not on others of their class, and not in other threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

from grl.weights import flattened_in_nnx
from grl.weights.flattened import find_flattened
from grl.weights.nnx_calls import watching_calls
from tests.support import nnx_models

X = np.ones((1, 2), np.float32)


def linear() -> Any:
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


def test_only_the_chosen_objects_are_watched_and_only_within_the_block() -> None:
    watched, other = linear(), linear()
    kind, call = type(watched), nnx.Linear.__call__
    seen = []

    def around(layer: Any, usual: Any, *args: Any) -> Any:
        seen.append(layer)
        return usual(*args)

    with watching_calls([watched], around):
        np.testing.assert_array_equal(watched(X), other(X))
        assert isinstance(watched, nnx.Linear)
    with pytest.raises(TypeError), watching_calls([watched], around):
        nnx.Linear()
    watched(X)
    assert len(seen) == 1
    assert seen[0] is watched
    assert type(watched) is kind
    assert nnx.Linear.__call__ is call


def test_another_thread_calls_its_layers_as_usual_during_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`find_flattened` runs while a second thread calls a layer of the same class, and jits it for the first time."""
    layer, results = nnx.BatchNorm(2, use_running_average=True, rngs=nnx.Rngs(0)), []
    layer.mean.set_value(np.float32([5.0, 7.0]))
    expected = np.asarray(layer(X))

    def second_thread() -> None:
        results.append(np.asarray(layer(X)))
        results.append(np.asarray(nnx.jit(lambda module, x: module(x))(layer, X)))

    observe = flattened_in_nnx._Watch.around

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not results:
            thread = threading.Thread(target=second_thread)
            thread.start()
            thread.join()
        return observe(self, *args, **kwargs)

    monkeypatch.setattr(flattened_in_nnx._Watch, "around", interrupted)
    assert find_flattened(nnx_models.LeNet(rngs=nnx.Rngs(0))) == {"fc1": 16}
    assert len(results) == 2
    for result in results:
        np.testing.assert_array_equal(result, expected)
