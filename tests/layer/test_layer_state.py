"""The layer's λ: read, set, scheduled, copied, saved and loaded exactly, without parameters and without retracing."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grl.schedules import DannSchedule, LinearSchedule
from tests.support.installed import HAS_FLAX, HAS_TORCH, needs_flax, needs_torch
from tests.support.layer_forms import LAYERS, Layer

TORCH = [layer for layer in LAYERS if layer.backend.BACKEND == "torch"]
NNX = [layer for layer in LAYERS if layer.name == "nnx"]
LINEN = [layer for layer in LAYERS if layer.name == "linen"]
STATEFUL = TORCH + NNX


if HAS_TORCH:
    import torch

    from grl import torch_impl
    from grl.torch_impl import gradient_reversal
if HAS_FLAX:
    import jax
    import jax.numpy as jnp
    from flax import linen as flax_linen
    from flax import nnx, serialization

    from grl import jax_impl
    from grl.jax_impl import linen

# No 32-bit float holds these.
EXACT = (0.1, 1 / 3, -0.7, 1e-300, 1.0 + 2.0**-52, 0.0, -1.0)


def _gradient(layer: Layer, call: Any) -> float:
    """The gradient that reaches a single one, for a cotangent of one."""
    one = np.float32([1.0]).view(np.uint32)
    _, gradient = layer.backend.gradient(lambda x, _: call(x), one, one, "float32", None)
    return float(gradient.view(np.float32)[0])


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_coeff_reads_and_sets(layer: Layer) -> None:
    made = layer()
    assert made.coeff == 1.0
    for value in (*EXACT, 2, np.float32(0.5), np.int64(3)):
        made.coeff = value
        assert type(made.coeff) is float
        assert made.coeff == value
        assert _gradient(layer, made) == np.float32(-float(value))


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_coeff_may_be_an_array(layer: Layer) -> None:
    made = layer(layer.backend.coefficient(np.float32(0.25).reshape(())))
    assert float(made.coeff) == 0.25
    assert _gradient(layer, made) == -0.25
    made.coeff = np.array([0.5])
    assert _gradient(layer, made) == -0.5


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_array_coeff_is_taken_at_its_value_when_set(layer: Layer) -> None:
    value = np.array(0.5)
    made = layer(value)
    value[...] = 7.0
    assert float(made.coeff) == 0.5


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_coeff_of_a_call_is_for_that_call(layer: Layer) -> None:
    made = layer(0.25)
    assert _gradient(layer, lambda x: made(x, 0.5)) == -0.5
    assert _gradient(layer, lambda x: made(x, coeff=0.5)) == -0.5
    assert _gradient(layer, lambda x: made(x, coeff=0.0)) == 0.0
    assert made.coeff == 0.25
    assert _gradient(layer, made) == -0.25


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_step_advances_a_schedule_and_nothing_else_does(layer: Layer) -> None:
    schedule = DannSchedule(20)
    made = layer(schedule)
    for count in range(25):
        assert made.coeff == schedule(count)
        for mode in ("train", "eval"):
            getattr(made, mode)()
            assert _gradient(layer, made) == np.float32(-schedule(count))
        assert made.coeff == schedule(count)
        made.step()


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_step_without_a_schedule_keeps_coeff(layer: Layer) -> None:
    made = layer(0.1)
    made.step()
    assert made.coeff == 0.1


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_setting_a_number_ends_a_schedule_and_setting_a_schedule_starts_one(layer: Layer) -> None:
    made = layer(LinearSchedule(4))
    made.step()
    made.coeff = 0.3
    made.step()
    assert made.coeff == 0.3
    made.coeff = LinearSchedule(4)
    assert made.coeff == 0.0  # at the count of two steps
    made.step()
    assert made.coeff == 0.5


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_any_function_of_the_step_is_a_schedule(layer: Layer) -> None:
    made = layer(lambda step: 0.25 * int(step))
    made.step()
    assert made.coeff == 0.25


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_schedule_with_a_wrong_value_is_refused(layer: Layer) -> None:
    with pytest.raises(ValueError, match=r"^coeff: got nan"):
        layer(lambda step: float("nan"))


def _copies(layer: Layer, made: Any) -> dict[str, Any]:
    copies = {"deepcopy": copy.deepcopy(made), "pickle": pickle.loads(pickle.dumps(made))}
    if layer.backend.BACKEND == "torch":
        copies |= {
            "half": copy.deepcopy(made).half(),
            "bfloat16": copy.deepcopy(made).bfloat16(),
            "double": copy.deepcopy(made).double(),
            "to dtype": copy.deepcopy(made).to(torch.float16),
            "to device": copy.deepcopy(made).to("cpu"),
            "to meta": copy.deepcopy(made).to("meta"),
            "in a model": torch.nn.Sequential(torch.nn.Linear(1, 1), copy.deepcopy(made)).half()[1],
        }
    if layer.name == "nnx":
        copies |= {"clone": nnx.clone(made), "merge": nnx.merge(*nnx.split(made), copy=True)}
    return copies


@pytest.mark.parametrize("coeff", EXACT)
@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_coeff_survives_every_copy_exactly(layer: Layer, coeff: float) -> None:
    for how, other in _copies(layer, layer(coeff)).items():
        assert float(other.coeff) == coeff, how
        other.coeff = 5.0  # a copy of its own
    assert layer(coeff).coeff == coeff


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_schedule_and_step_survive_every_copy(layer: Layer) -> None:
    made = layer(DannSchedule(30))
    for _ in range(7):
        made.step()
    for how, other in _copies(layer, made).items():
        assert other.coeff == DannSchedule(30)(7), how
        other.step()
        assert other.coeff == DannSchedule(30)(8), how
    assert made.coeff == DannSchedule(30)(7)


@pytest.mark.parametrize("layer", STATEFUL, ids=str)
def test_repr_shows_coeff_and_schedule(layer: Layer) -> None:
    assert repr(layer(0.25)) == "GRL(coeff=0.25)"
    assert str(layer(0.25)) == "GRL(coeff=0.25)"
    made = layer(LinearSchedule(4))
    made.step()
    shown = "GRL(coeff=-0.5, schedule=LinearSchedule(total_steps=4, start=-1.0, end=1.0), step=1)"
    assert repr(made) == shown


# PyTorch


@needs_torch
def test_torch_has_no_parameters_and_two_buffers_of_full_precision() -> None:
    layer = torch_impl.GRL(0.3)
    assert list(layer.parameters()) == []
    buffers = {name: (buffer.dtype, buffer.shape, buffer.item()) for name, buffer in layer.named_buffers()}
    assert buffers == {"coefficient": (torch.float64, (), 0.3), "step_count": (torch.int64, (), 0)}
    assert set(layer.state_dict()) == set(buffers)


@needs_torch
@pytest.mark.parametrize("coeff", EXACT)
def test_torch_state_dict_round_trip_is_exact(coeff: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch_impl.GRL(coeff))
    file = io.BytesIO()
    torch.save(model.half().state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = torch.nn.Sequential(torch.nn.Linear(2, 2), torch_impl.GRL()).half()
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    assert other[1].coeff == coeff


@needs_torch
def test_torch_state_dict_resumes_a_schedule() -> None:
    first, second = torch_impl.GRL(DannSchedule(30)), torch_impl.GRL(DannSchedule(30))
    for _ in range(7):
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.coeff == first.coeff
    second.step()
    assert second.coeff == DannSchedule(30)(8)


@needs_torch
def test_torch_state_dict_keeps_a_tensor_coeff() -> None:
    file = io.BytesIO()
    torch.save(torch_impl.GRL(torch.tensor([0.1, 0.2])).state_dict(), file)
    file.seek(0)
    other = torch_impl.GRL()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.coeff, torch.tensor([0.1, 0.2]))


@needs_torch
def test_torch_copied_state_dict_brings_back_coeff() -> None:
    layer = torch_impl.GRL(0.5)
    state = copy.deepcopy(layer.state_dict())
    layer.coeff = 0.7
    layer.step()
    layer.load_state_dict(state)
    assert layer.coeff == 0.5


@needs_torch
def test_torch_state_dict_holds_tensors_alone_as_those_who_walk_over_it_expect(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    with torch.device("meta"):
        on_meta = torch_impl.GRL(0.1).state_dict()
    assert on_meta["coefficient"].item() == 0.1
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch_impl.GRL(DannSchedule(30)))
    model[1].step()
    safetensors.save_file({name: tensor.cpu() for name, tensor in model.state_dict().items()}, tmp_path / "model")
    other = torch.nn.Sequential(torch.nn.Linear(2, 2), torch_impl.GRL(DannSchedule(30)))
    other.load_state_dict(safetensors.load_file(tmp_path / "model"))
    assert other[1].coeff == DannSchedule(30)(1)
    other[1].step()
    assert other[1].coeff == DannSchedule(30)(2)


@needs_torch
def test_torch_weights_of_a_model_without_the_layer_are_loaded() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Identity())
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch_impl.GRL(0.3))
    assert str(model.load_state_dict(plain.state_dict())) == "<All keys matched successfully>"
    assert model[1].coeff == 0.3
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "1.scale"'):
        model.load_state_dict({**plain.state_dict(), "1.scale": torch.ones(())})


@needs_torch
@pytest.mark.parametrize(("name", "value", "message"), [
    ("coeff", "0.3", "1.coeff: got '0.3' of type str"),
    ("coeff", torch.tensor(float("nan")), "1.coeff: got nan, which is not finite"),
    ("coeff", torch.tensor(True), "1.coeff: got True of type bool"),
    ("step", "x", "1.step: got 'x'; expected an integer from 0"),
    ("step", torch.tensor(-1), r"1.step: got tensor\(-1\); expected an integer from 0"),
    ("step", torch.tensor(0.5), r"1.step: got tensor\(0.5000\)"),
    ("step", torch.arange(2), "1.step: got tensor"),
])  # fmt: skip
def test_torch_foreign_state_is_refused(name: str, value: Any, message: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch_impl.GRL(0.5))
    others = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("1.")}
    state = others | {"1.coeff": torch.tensor(0.7), f"1.{name}": value}
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    assert (model[1].coeff, model[1].step_count.item()) == (0.5, 0)


@needs_torch
def test_torch_whole_module_is_pickled_by_torch_save() -> None:
    file = io.BytesIO()
    torch.save(torch_impl.GRL(0.1), file)
    file.seek(0)
    assert torch.load(file, weights_only=False).coeff == 0.1


def _ramps() -> dict[str, list[Any]]:
    grid = np.linspace(-1.0, 1.0, 1000)
    return {
        "linear": grid.tolist(),
        "from zero": [0.0, 0.0, 0.5, 1.0, 1.0, 2.0, -0.0],
        "dann": [DannSchedule(1000)(step) for step in range(1000)],
        "extremes": [1.0, 1e300, -1e300, 5e-324, 0.1, 1e-40],
        "numpy": list(grid[::100]),
    }


def _counted(function: Any) -> tuple[Any, list[int]]:
    """The function under `torch.compile(fullgraph=True)`, and a list that grows by one with each graph."""
    graphs: list[int] = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(len(graphs))
        return module.forward

    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend), graphs


@needs_torch
@pytest.mark.parametrize("ramp", _ramps())
def test_torch_layer_takes_one_graph_over_any_ramp(ramp: str) -> None:
    layer = torch_impl.GRL(0.7)
    model, graphs = _counted(layer)
    x = torch.ones(2, requires_grad=True)
    for coeff in _ramps()[ramp]:
        layer.coeff = coeff
        (gradient,) = torch.autograd.grad(model(x).sum(), x)
        assert gradient.tolist() == [np.float32(-coeff)] * 2 if abs(coeff) < 1e38 else gradient.isinf().all()
    assert len(graphs) == 1


@needs_torch
@pytest.mark.parametrize("ramp", _ramps())
def test_torch_function_takes_at_most_two_graphs_over_any_ramp(ramp: str) -> None:
    function, graphs = _counted(lambda x, coeff: gradient_reversal(x, coeff))
    x = torch.ones(2, requires_grad=True)
    for coeff in _ramps()[ramp]:
        (gradient,) = torch.autograd.grad(function(x, coeff).sum(), x)
        assert gradient.tolist() == [np.float32(-coeff)] * 2 if abs(coeff) < 1e38 else gradient.isinf().all()
    assert len(graphs) <= 2


@needs_torch
@pytest.mark.filterwarnings("ignore")  # of PyTorch's own, about the graph break
def test_torch_a_step_and_a_λ_set_within_compiled_code_are_those_of_eager_code() -> None:
    schedule = DannSchedule(10, low=0.5)
    layer = torch_impl.GRL(schedule)

    @torch.compile(backend="aot_eager")
    def step(x: torch.Tensor) -> torch.Tensor:
        layer.step()
        return layer(x).sum()

    @torch.compile(backend="aot_eager")
    def set_to(x: torch.Tensor, coeff: float) -> torch.Tensor:
        layer.coeff = coeff
        return layer(x).sum()

    for count in range(1, 4):
        x = torch.ones(2, requires_grad=True)
        step(x).backward()
        assert layer.coeff == schedule(count)
        assert x.grad.tolist() == [-np.float32(schedule(count))] * 2
    for coeff in (0.3, 0.7):
        x = torch.ones(2, requires_grad=True)
        set_to(x, coeff).backward()
        assert layer.coeff == coeff
        assert x.grad.tolist() == [-np.float32(coeff)] * 2


@needs_torch
def test_torch_compiled_integer_has_the_zero_of_the_eager_one() -> None:
    function, _ = _counted(lambda x, coeff: gradient_reversal(x, coeff))
    x = torch.ones(1, requires_grad=True)
    for coeff in (2, 0, 3, 0):
        (gradient,) = torch.autograd.grad(function(x, coeff).sum(), x)
        assert (gradient.item(), gradient.signbit().item()) == (-coeff, True)


@needs_torch
def test_torch_scheduled_layer_takes_one_graph() -> None:
    layer = torch_impl.GRL(DannSchedule(100))
    model, graphs = _counted(layer)
    x = torch.ones(2, requires_grad=True)
    for step in range(120):
        (gradient,) = torch.autograd.grad(model(x).sum(), x)
        assert gradient.tolist() == [np.float32(-DannSchedule(100)(step))] * 2
        layer.step()
    assert len(graphs) == 1


@needs_torch
def test_torch_tensor_coefficient_takes_one_graph() -> None:
    function, graphs = _counted(lambda x, coeff: gradient_reversal(x, coeff))
    x = torch.ones(2, requires_grad=True)
    for coeff in np.linspace(-1, 1, 100):
        (gradient,) = torch.autograd.grad(function(x, torch.tensor(coeff)).sum(), x)
        assert gradient.tolist() == [np.float32(-coeff)] * 2
    assert len(graphs) == 1


@needs_torch
def test_torch_never_reads_the_value_of_a_tensor_coefficient() -> None:
    # A meta tensor has no value: whatever looked at it, and so would synchronise with a device, would raise.
    x = torch.ones(2, 3, device="meta", requires_grad=True)
    for shape in ((), (2,), (2, 3)):
        coeff = torch.ones(shape, device="meta")
        for reverse in (gradient_reversal, torch_impl.GRL(coeff)):
            torch.autograd.grad(reverse(x, coeff).sum(), x)


# Flax


@needs_flax
def test_nnx_has_no_parameters() -> None:
    assert nnx.state(jax_impl.GRL(0.3), nnx.Param) == nnx.State({})
    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jax_impl.GRL(0.3))
    assert set(nnx.to_pure_dict(nnx.state(model, nnx.Param))["layers"]) == {0}


@needs_flax
@pytest.mark.parametrize("coeff", EXACT)
def test_nnx_state_round_trip_is_exact(coeff: float) -> None:
    first, second = jax_impl.GRL(coeff), jax_impl.GRL()
    nnx.update(second, nnx.state(first))
    assert type(second.coeff) is float
    assert second.coeff == coeff


@needs_flax
def test_nnx_state_resumes_a_schedule() -> None:
    first, second = jax_impl.GRL(DannSchedule(30)), jax_impl.GRL(DannSchedule(30))
    for _ in range(7):
        first.step()
    nnx.update(second, nnx.state(first))
    assert second.coeff == first.coeff
    second.step()
    assert second.coeff == DannSchedule(30)(8)


@needs_flax
@pytest.mark.parametrize("coeff", EXACT)
def test_nnx_coeff_comes_through_jit_in_the_precision_of_jax(coeff: float) -> None:
    # Flax writes back whatever goes into `nnx.jit`, and JAX has 32 bits unless it is told otherwise.
    for x64, expected in ((False, float(np.float32(coeff))), (True, coeff)):
        with jax.enable_x64(x64):
            layer = jax_impl.GRL(coeff)
            nnx.jit(lambda layer, x: layer(x))(layer, jnp.ones(2))
            assert float(layer.coeff) == expected


@needs_flax
def test_nnx_jit_traces_once_over_a_ramp() -> None:
    traces = []

    @nnx.jit
    def gradient(layer: Any, x: Any) -> Any:
        traces.append(None)
        return jax.grad(lambda x: layer(x).sum())(x)

    layer, x = jax_impl.GRL(0.7), jnp.ones(2)
    for coeff in np.linspace(-1, 1, 1000):
        layer.coeff = coeff
        assert gradient(layer, x).tolist() == [np.float32(-coeff)] * 2
    scheduled = jax_impl.GRL(DannSchedule(1000))
    assert len(traces) == 1
    for step in range(10):
        assert np.allclose(gradient(scheduled, x), -DannSchedule(1000)(step), rtol=1e-6, atol=0)
        scheduled.step()
    assert len(traces) == 2  # a layer with a schedule is another structure


@needs_flax
def test_nnx_step_inside_jit_is_traced_once_and_ramps() -> None:
    traces = []

    @nnx.jit
    def train_step(layer: Any, x: Any) -> Any:
        traces.append(None)
        gradient = jax.grad(lambda x: layer(x).sum())(x)
        layer.step()
        return gradient

    layer, schedule = jax_impl.GRL(LinearSchedule(10)), LinearSchedule(10)
    for step in range(12):
        assert np.allclose(train_step(layer, jnp.ones(2)), -schedule(step), atol=1e-6)
        assert float(layer.coeff) == pytest.approx(schedule(step + 1), abs=1e-6)
    assert len(traces) <= 2  # λ comes back from the first step as a JAX scalar


@needs_flax
def test_jax_coeff_of_a_schedule_has_64_bits_under_x64_wherever_it_is_computed() -> None:
    schedule = LinearSchedule(10)
    with jax.enable_x64(True):
        layer = jax_impl.GRL(schedule)
        for steps in range(1, 4):
            nnx.jit(lambda layer: layer.step())(layer)
            assert (layer.coeff.dtype, float(layer.coeff)) == (jnp.float64, pytest.approx(schedule(steps), rel=1e-15))
        layer = nnx.fori_loop(0, 3, lambda _, layer: layer.step() or layer, jax_impl.GRL(schedule))
        assert float(layer.coeff) == pytest.approx(schedule(3), rel=1e-15)
        older = linen.GRL(schedule)
        variables = older.init(jax.random.key(0), jnp.ones(1))
        _, variables = older.apply(variables, method="step", mutable=["reversal"])
        gradient = jax.grad(lambda x: older.apply(variables, x).sum())(jnp.ones(1))
        assert gradient.tolist() == [pytest.approx(0.8, rel=1e-15)]


@needs_flax
def test_jax_jit_traces_once_over_a_ramp() -> None:
    from grl.jax_impl import gradient_reversal, gradient_reversal_jvp

    reversals = {
        "custom_vjp": gradient_reversal,
        "custom_jvp": gradient_reversal_jvp,
        "nnx": jax_impl.GRL(),
        "linen": lambda x, coeff: linen.GRL().apply({}, x, coeff),
    }
    for name, reverse in reversals.items():
        traces = []

        @jax.jit
        def gradient(x: Any, coeff: Any, reverse: Any = reverse, traces: list[None] = traces) -> Any:
            traces.append(None)
            return jax.grad(lambda x: reverse(x, coeff).sum())(x)

        for coeff in np.linspace(-1, 1, 1000).tolist():
            assert gradient(jnp.ones(2), coeff).tolist() == [np.float32(-coeff)] * 2
        assert len(traces) == 1, name


@needs_flax
def test_linen_has_no_variables_without_a_schedule() -> None:
    assert linen.GRL(0.3).init(jax.random.key(0), jnp.ones(2)) == {}
    assert linen.GRL(0.3).apply({}, method="step", mutable=["reversal"]) == (None, {})


@needs_flax
def test_linen_schedule_without_variables_stands_at_step_0_and_a_calls_own_coeff_goes_before_it() -> None:
    layer = linen.GRL(LinearSchedule(10))  # from −1

    def gradient(*coeff: float) -> list[float]:
        return jax.grad(lambda x: layer.apply({}, x, *coeff).sum())(jnp.ones(2)).tolist()

    assert gradient() == [1.0, 1.0]
    assert gradient(0.25) == [-0.25, -0.25]


@needs_flax
@pytest.mark.parametrize("coeff", EXACT)
def test_linen_coeff_is_exact_in_every_copy(coeff: float) -> None:
    layer = linen.GRL(coeff)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.clone(), layer.copy()):
        assert other.coeff == coeff
    assert repr(coeff) in repr(layer)


@needs_flax
def test_linen_schedule_steps_only_when_told_and_survives_serialisation() -> None:
    schedule = DannSchedule(30)
    layer = linen.GRL(schedule)
    variables = layer.init(jax.random.key(0), jnp.ones(2))
    for step in range(5):
        gradient = jax.grad(lambda x, v: layer.apply(v, x).sum())(jnp.ones(2), variables)
        assert np.allclose(gradient, -schedule(step), atol=1e-6)
        _, unchanged = layer.apply(variables, jnp.ones(2), mutable=["reversal"])
        assert unchanged["reversal"]["step"] == step
        _, variables = layer.apply(variables, method="step", mutable=["reversal"])
        variables = serialization.from_bytes(variables, serialization.to_bytes(variables))
    assert "params" not in variables


@needs_flax
def test_linen_layer_works_inside_a_model() -> None:
    class Model(flax_linen.Module):
        @flax_linen.compact
        def __call__(self, x: Any, coeff: Any) -> Any:
            return flax_linen.Dense(1)(linen.GRL()(x, coeff))

    model = Model()
    variables = model.init(jax.random.key(0), jnp.ones((1, 2)), 1.0)
    with_layer = jax.grad(lambda x: model.apply(variables, x, 0.5).sum())(jnp.ones((1, 2)))
    assert np.array_equal(with_layer, -0.5 * variables["params"]["Dense_0"]["kernel"].T)


@needs_torch
@pytest.mark.parametrize("kind", ["parameter", "buffer", "part of a graph"])
@pytest.mark.parametrize("late", [False, True], ids=["made", "set"])
def test_torch_tensor_is_held_as_a_plain_one(kind: str, late: bool) -> None:
    number = torch.tensor(0.1)
    coeff = {
        "parameter": lambda: torch.nn.Parameter(number),
        "buffer": lambda: torch.nn.Buffer(number),
        "part of a graph": lambda: number.requires_grad_() * 1,
    }[kind]()
    made = torch_impl.GRL() if late else torch_impl.GRL(coeff)
    made.coeff = coeff
    assert not list(made.parameters())
    assert type(made.coefficient) is torch.Tensor
    assert not made.coefficient.requires_grad
    for same in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        same.half()
        assert same.coeff.dtype == torch.float32
        assert same.coeff == number
    made.coeff = 0.5
    assert made.coeff == 0.5


@needs_torch
def test_torch_schedule_may_be_a_module() -> None:
    class Halving(torch.nn.Module):
        def forward(self, step: int) -> float:
            return 0.5**step

    made = torch_impl.GRL()
    made.coeff = Halving()
    made.step()
    made.step()
    assert made.coeff == 0.25


@needs_torch
def test_torch_loaded_tensor_is_a_copy() -> None:
    coeff = torch.tensor(0.1)
    loaded = torch_impl.GRL()
    loaded.load_state_dict(torch_impl.GRL(coeff).state_dict())
    coeff.fill_(5.0)
    assert loaded.coeff == torch.tensor(0.1)
