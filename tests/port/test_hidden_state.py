"""`compare` replaces what belongs to the whole process: other threads keep their own, and everything is put back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

import jax.numpy as jnp
from torch import nn

from grl.parity import compare, copy_weights

pytestmark = pytest.mark.trains

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


class Port(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(jnp.tanh(self.first(x)))


def models() -> tuple[Any, Any]:
    model, port = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), Port()
    copy_weights(model, port)
    return model, port


def compared_while(action: Callable[[], None]) -> Any:
    """Compare two models whose loss in JAX has another thread do something."""

    def loss(output: Any) -> Any:
        thread = threading.Thread(target=action)
        thread.start()
        thread.join()
        return jnp.mean(output**2)

    model, port = models()
    return compare(model, port, X, loss=(lambda output: (output**2).mean(), loss))


def test_another_thread_sees_its_own_float32() -> None:
    seen = set()

    def look() -> None:
        seen.add((jnp.float32.dtype.name, jnp.zeros(2, jnp.float32).dtype.name, jnp.float32(1).dtype.name))
        query = jnp.ones((1, 2, 1, 4), jnp.float32)
        seen.add(jax.nn.dot_product_attention(query, query, query).dtype.name)

    assert compared_while(look).agrees
    assert seen == {("float32", "float32", "float32"), "float32"}


def test_the_dropout_of_another_thread_stays_on() -> None:
    model, port = models()
    port.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    other = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    port_forward: Any = Port.__call__
    zeros = []

    def drop() -> None:
        zeros.append(int((other(jnp.ones(1000)) == 0).sum()))

    class Dropping(Port):
        def __call__(self, x: Any) -> Any:
            thread = threading.Thread(target=drop)
            thread.start()
            thread.join()
            return self.drop(port_forward(self, x))

    port.__class__ = Dropping
    model.append(nn.Dropout(0.5))
    assert compare(model, port, X, train=True).agrees
    assert zeros
    assert all(300 < count < 700 for count in zeros)


def test_two_threads_may_compare_at_once() -> None:
    pairs = [models() for _ in range(2)]
    reports: list[Any] = []
    threads = [threading.Thread(target=lambda pair=pair: reports.append(compare(*pair, X))) for pair in pairs]
    usual = jnp.float32, jax.nn.dot_product_attention, nnx.Linear.__call__, torch.get_default_dtype()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.agrees for report in reports] == [True, True]
    assert [len(report.rows) for report in reports] == [8, 8]
    assert all(now is before for now, before in zip(current(), usual, strict=True))


def current() -> tuple[Any, ...]:
    return jnp.float32, jax.nn.dot_product_attention, nnx.Linear.__call__, torch.get_default_dtype()


@pytest.mark.parametrize("side", ["torch", "jax"])
def test_everything_is_put_back_when_a_model_raises(side: str) -> None:
    usual = current()
    model, port = models()
    runs = []

    def fails(output: Any) -> Any:
        runs.append(output)
        if len(runs) > 1 or side == "torch":
            raise RuntimeError("no loss")
        return (output**2).mean()

    def works(output: Any) -> Any:
        return (output**2).mean()

    with pytest.raises(RuntimeError, match="no loss"):
        compare(model, port, X, loss=(fails, works) if side == "torch" else (works, fails))
    assert all(now is before for now, before in zip(current(), usual, strict=True))
    assert jnp.float32.dtype == np.float32
    assert compare(*models(), X).agrees
