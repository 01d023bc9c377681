"""λ and the step count are Flax Variables: what carries a model's state carries them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grl.schedules import DannSchedule
from tests.support.installed import HAS_FLAX, needs_flax

pytestmark = needs_flax

SCHEDULE = DannSchedule(30)

if HAS_FLAX:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from grl.jax_impl import GRL


def _model(steps: int = 0) -> Any:
    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), GRL(SCHEDULE), nnx.Linear(2, 1, rngs=nnx.Rngs(1)))
    for _ in range(steps):
        model.layers[1].step()
    return model


def test_average_over_the_whole_state_leaves_a_layer_that_steps_on() -> None:
    optax = pytest.importorskip("optax")
    model, averaged = _model(4), _model()
    nnx.update(averaged, optax.incremental_update(nnx.state(model), nnx.state(averaged), 0.4))
    layer = averaged.layers[1]
    assert float(layer.coeff) == pytest.approx(0.4 * SCHEDULE(4), rel=1e-6)
    layer.step()  # from a count of 1.6
    assert layer.coeff == SCHEDULE(2)
    assert repr(layer).endswith("step=2)")
    assert jnp.issubdtype(jnp.result_type(layer.state_variables()["step"].get_value()), jnp.integer)


@pytest.mark.filterwarnings("ignore")
def test_orbax_saves_and_restores_it(tmp_path: Path) -> None:
    orbax = pytest.importorskip("orbax.checkpoint")
    model, other = _model(4), _model()
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(model)))
        checkpointer.wait_until_finished()
        target = nnx.state(other)
        restored = checkpointer.restore(tmp_path / "state", nnx.to_pure_dict(target))
    nnx.replace_by_pure_dict(target, restored)
    nnx.update(other, target)
    layer = other.layers[1]
    assert float(layer.coeff) == SCHEDULE(4)
    layer.step()
    assert layer.coeff == SCHEDULE(5)


def test_gradient_over_the_parameters_leaves_the_state_out_and_over_all_of_it_raises() -> None:
    graph, parameters, rest = nnx.split(_model(4), nnx.Param, ...)

    def loss(*states: Any) -> jax.Array:
        return nnx.merge(graph, *states)(jnp.ones((3, 2))).sum()

    gradients = jax.grad(loss)(parameters, rest)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    whole_graph, state = nnx.split(_model(4))
    with pytest.raises(TypeError, match="int32"):
        jax.grad(lambda state: nnx.merge(whole_graph, state)(jnp.ones((3, 2))).sum())(state)
