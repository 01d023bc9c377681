"""λ and the step count are PyTorch buffers: what carries a module's buffers carries them exactly."""

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grl.schedules import ConstantSchedule, DannSchedule
from tests.support.installed import HAS_TORCH, needs_torch
from tests.support.several_processes import ROOT, end, torch_environments

pytestmark = needs_torch

SCHEDULE = DannSchedule(10)
STEPS = 4

if HAS_TORCH:
    import torch
    from torch import Tensor, nn

    from grl.torch_impl import GRL


def _network(layer: Any = None) -> Any:
    torch.manual_seed(3)
    layer = GRL(SCHEDULE) if layer is None else layer
    return nn.Sequential(nn.Linear(3, 4), layer, nn.BatchNorm1d(4), nn.Linear(4, 1))


def _stepped(steps: int = STEPS) -> Any:
    model = _network()
    for _ in range(steps):
        model[1].step()
    return model


def _gradient(call: Callable[[Any], Any]) -> Any:
    x = torch.linspace(-1, 1, 15).reshape(5, 3).requires_grad_()
    return torch.autograd.grad(call(x).sum(), x)[0]


def _assert_arrived(model: Any) -> None:
    layer = model[1]
    assert (layer.coefficient.dtype, layer.step_count.dtype) == (torch.float64, torch.int64)
    assert (layer.coeff, int(layer.step_count)) == (SCHEDULE(STEPS), STEPS)
    expected = _stepped().eval()
    assert torch.equal(_gradient(copy.deepcopy(model).float().eval()), _gradient(expected))
    layer.step()
    assert layer.coeff == SCHEDULE(STEPS + 1)


CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "to(dtype)": lambda model: model.to(torch.float16),
    "to(device, dtype)": lambda model: model.to("cpu", torch.float16),
    "share_memory": lambda model: model.share_memory(),
    "requires_grad_": lambda model: model.requires_grad_(False),
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_conversions_leave_both_numbers_as_they_are(conversion: str) -> None:
    model = CONVERSIONS[conversion](_stepped())
    layer = model[1]
    assert (layer.coefficient.dtype, layer.step_count.dtype) == (torch.float64, torch.int64)
    assert (layer.coeff, int(layer.step_count)) == (SCHEDULE(STEPS), STEPS)


def test_shared_memory_is_shared() -> None:
    layer = GRL(0.1).share_memory()
    assert layer.coefficient.is_shared()
    buffer = layer.coefficient
    layer.coeff = 0.3
    assert buffer.item() == 0.3


def test_meta_device_and_to_empty_keep_the_values() -> None:
    with torch.device("meta"):
        made_there = _network()
    assert made_there[1].coefficient.device.type == "cpu"
    for model in (made_there, _stepped().to("meta")):
        model.to_empty(device="cpu")
        model.load_state_dict(_stepped().state_dict())
        _assert_arrived(model)
    assert _stepped().to("meta").to_empty(device="cpu")[1].coeff == SCHEDULE(STEPS)


def test_deferred_initialisation_resets_to_the_start() -> None:
    for start, expected in ((0.3, 0.3), (DannSchedule(10, low=0.1), 0.1)):
        layer = GRL(start)
        layer.step()
        layer.coefficient.fill_(7.7)
        layer.reset_parameters()
        assert (layer.coeff, int(layer.step_count)) == (expected, 0)


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict(assign: bool) -> None:
    model = _network()
    assert str(model.load_state_dict(_stepped().state_dict(), assign=assign)) == "<All keys matched successfully>"
    _assert_arrived(model)
    with torch.device("meta"):
        model = _network()
    model.load_state_dict(_stepped().state_dict(), assign=True)
    _assert_arrived(model)


def test_named_buffers_and_state_dict_agree() -> None:
    model = _stepped()
    keys = {name for name, _ in model.named_buffers()} | {name for name, _ in model.named_parameters()}
    assert set(model.state_dict()) == keys
    for name, buffer in model.named_buffers():
        assert model.get_buffer(name) is buffer


def test_older_names_are_loaded() -> None:
    state = _stepped().state_dict()
    state["1.coeff"], state["1.step"] = state.pop("1.coefficient"), state.pop("1.step_count")
    model = _network()
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
    _assert_arrived(model)


def test_identity_in_place_of_the_layer() -> None:
    model, plain = _stepped(), _network(nn.Identity())
    assert str(model.load_state_dict(plain.state_dict())) == "<All keys matched successfully>"
    _assert_arrived(model)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "1.coefficient", "1.step_count"'):
        plain.load_state_dict(model.state_dict())
    unexpected = plain.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert unexpected == ["1.coefficient", "1.step_count"]


def test_layer_that_is_not_persistent_leaves_them_out() -> None:
    model = _network(GRL(0.3, persistent=False))
    assert not any(key.startswith("1.") for key in model.state_dict())
    model.load_state_dict(_network(nn.Identity()).state_dict())
    assert model[1].coeff == 0.3
    assert model.half()[1].coefficient.dtype == torch.float64


def test_whole_module_is_saved_and_loaded() -> None:
    file = io.BytesIO()
    torch.save(_stepped(), file)
    file.seek(0)
    for model in (
        torch.load(file, weights_only=False),
        pickle.loads(pickle.dumps(_stepped())),
        copy.deepcopy(_stepped()),
    ):
        _assert_arrived(model)


def test_weights_only_load() -> None:
    file = io.BytesIO()
    torch.save(_stepped().state_dict(), file)
    file.seek(0)
    model = _network()
    model.load_state_dict(torch.load(file, weights_only=True))
    _assert_arrived(model)


def test_safetensors_of_a_model(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_model(_stepped(), str(tmp_path / "model"))
    model = _network()
    assert safetensors.load_model(model, str(tmp_path / "model")) == (set(), [])
    _assert_arrived(model)


@pytest.mark.filterwarnings("ignore")
def test_distributed_checkpoint_in_place_and_by_its_functions(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    dcp.save(_stepped().state_dict(), checkpoint_id=tmp_path, no_dist=True)
    in_place, by_functions = _network(), _network()
    dcp.load(in_place.state_dict(), checkpoint_id=tmp_path, no_dist=True)  # writes into the state_dict's tensors
    _assert_arrived(in_place)
    set_model_state_dict(by_functions, get_model_state_dict(_stepped()))
    _assert_arrived(by_functions)


def test_forward_reads_what_anybody_wrote_into_the_buffer() -> None:
    model = _network(GRL(0.5)).eval()
    expected = _gradient(_network(GRL(0.25)).eval())
    model[1].coefficient.copy_(torch.tensor(0.25))
    assert torch.equal(_gradient(model), expected)
    model[1].coeff = 0.5
    model[1].coefficient.data.fill_(0.25)
    assert torch.equal(_gradient(model), expected)
    model[1].coefficient = torch.tensor(0.25, dtype=torch.float64)
    assert torch.equal(_gradient(model), expected)
    assert model[1].coeff == 0.25


def test_coefficient_overwritten_between_forward_and_backward_does_not_matter() -> None:
    for coeff in (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5])):
        layer, x = GRL(coeff), torch.ones(2, 3, requires_grad=True)
        y = layer(x)
        layer.coefficient.fill_(7.0)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((2, 3), -0.5))


def test_setting_a_number_does_not_write_into_the_tensor_that_was_set_before() -> None:
    tensor = torch.tensor(0.5, dtype=torch.float64)
    layer = GRL(tensor)
    layer.coeff = 0.25
    assert (tensor.item(), layer.coeff) == (0.5, 0.25)
    tensor = torch.tensor(0.5, dtype=torch.float64)
    layer.coeff = tensor
    layer.load_state_dict(GRL(0.25).state_dict())
    assert (tensor.item(), float(layer.coeff)) == (0.5, 0.25)


def test_averaged_models() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = _network()
    copied, average = AveragedModel(model), AveragedModel(model, use_buffers=True)
    moving = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    coefficients = []
    for _ in range(STEPS):
        model[1].step()
        coefficients.append(model[1].coeff)
        for averaged in (copied, average, moving):
            averaged.update_parameters(model)
    # λ is averaged as every floating buffer is, and the count stays an integer from which the schedule goes on.
    assert average.module[1].coeff == pytest.approx(sum(coefficients) / STEPS, rel=1e-12)
    for averaged in (average, moving):
        layer = averaged.module[1]
        count = int(layer.step_count)
        assert (layer.step_count.dtype, 1 <= count <= STEPS) == (torch.int64, True)
        layer.step()
        assert layer.coeff == SCHEDULE(count + 1)
    _assert_arrived(copied.module)


def test_functional_call() -> None:
    model, other = _stepped().eval(), _network(GRL(0.1)).eval()
    expected = _gradient(model)
    states = (model.state_dict(), {**dict(model.named_parameters()), **dict(model.named_buffers())})
    for state in states:
        for module in (model, other):
            gradient = _gradient(lambda x, m=module, s=state: torch.func.functional_call(m, s, (x,)))  # type: ignore[misc]
            assert torch.equal(gradient, expected)
    assert other[1].coeff == 0.1


def test_stacked_modules_under_vmap() -> None:
    from torch.func import functional_call, grad, stack_module_state, vmap

    models = [_stepped(steps).eval() for steps in (0, 2, 4)]
    parameters, buffers = stack_module_state(models)
    assert buffers["1.coefficient"].tolist() == [SCHEDULE(steps) for steps in (0, 2, 4)]
    base = copy.deepcopy(models[0]).to("meta")

    def loss(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        y: Tensor = functional_call(base, (parameters, buffers), (x,)).sum()
        return y

    x = torch.linspace(-1, 1, 15).reshape(5, 3)
    gradients = vmap(grad(loss, argnums=2), in_dims=(0, 0, None))(parameters, buffers, x)
    for model, gradient in zip(models, gradients, strict=True):
        torch.testing.assert_close(gradient, _gradient(model))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exported_program_holds_the_coefficient_as_a_buffer(strict: bool) -> None:
    model = _stepped().eval()
    program = torch.export.export(model, (torch.ones(5, 3),), strict=strict)
    assert "1.coefficient" in program.graph_signature.buffers
    module = program.module()
    assert torch.equal(_gradient(module), _gradient(model))
    state = module.state_dict()
    state["1.coefficient"].fill_(0.25)
    assert torch.equal(_gradient(module), _gradient(_network(GRL(0.25)).eval()))


def test_traced_by_fx_the_coefficient_stays_a_buffer() -> None:
    model = _stepped().eval()
    traced = torch.fx.symbolic_trace(model)
    traced.get_buffer("1.coefficient").fill_(0.25)
    assert torch.equal(_gradient(traced), _gradient(_network(GRL(0.25)).eval()))


def test_made_inside_of_fake_tensors_it_has_fake_buffers() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = _network()
        model(torch.zeros(5, 3)).sum().backward()
        assert model[0].weight.grad.shape == (4, 3)
        assert repr(model[1]).startswith("GRL(coeff=FakeTensor")


def test_compiled_layer_has_one_graph_over_a_ramp_and_reads_the_buffer() -> None:
    from torch._dynamo.testing import CompileCounter

    layer, graphs = GRL(SCHEDULE), CompileCounter()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    x = torch.ones(2, requires_grad=True)
    for step in range(12):
        (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
        assert torch.equal(gradient, torch.full((2,), -SCHEDULE(step)))
        layer.step()
    layer.coefficient.copy_(torch.tensor(0.25))
    assert torch.autograd.grad(compiled(x).sum(), x)[0].tolist() == [-0.25, -0.25]
    assert graphs.frame_count == 1


def test_compiled_call_whose_coefficient_was_changed_before_backward_raises() -> None:
    torch.compiler.reset()
    layer, x = GRL(0.5), torch.ones(2, requires_grad=True)
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    layer.coeff = 7.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x)


def test_schedule_that_nobody_steps_warns_once() -> None:
    layer, x = GRL(SCHEDULE), torch.ones(2, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(99):
            layer(x)
        layer.eval()(x)
        with torch.no_grad():
            layer.train()(x)
    with pytest.warns(UserWarning, match=r"^λ is still 0.0 after 100 calls; nobody calls layer.step\(\)") as warned:
        layer(x)
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepped = GRL(SCHEDULE)
        stepped.step()
        for other in (layer, stepped, GRL(0.5), GRL(ConstantSchedule(0.5))):
            for _ in range(150):
                other(x)


_PROCESS = """
import os
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tests.layer.test_state_travels import SCHEDULE, STEPS, _network, _stepped

dist.init_process_group("gloo")
rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
x = torch.linspace(-1, 1, 18).reshape(6, 3)

def gradient(model):
    model.zero_grad()
    model(x).pow(2).mean().backward()
    gradient = next(model.parameters()).grad
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient

def check(model, name):
    layer = next(module for module in model.modules() if hasattr(module, "step_count"))
    assert (layer.coeff, int(layer.step_count)) == (SCHEDULE(STEPS), STEPS), (name, rank, layer)
    torch.testing.assert_close(gradient(model), gradient(_stepped()), msg=lambda text: f"{name}, {rank}: {text}")

full = _stepped().state_dict() if rank == 0 else {}
for sharded in (True, False):
    for broadcast in (True, False):
        model = _network()
        if sharded:
            fully_shard(model, mesh=mesh)
        state = dict(full) if broadcast else _stepped().state_dict()
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
        set_model_state_dict(model, state, options=options)
        check(model, f"sharded {sharded}, broadcast {broadcast}")
for load in ("in place", "by functions"):
    source, model = _stepped(), _network()
    fully_shard(source, mesh=mesh), fully_shard(model, mesh=mesh)
    folder = f"{sys.argv[1]}/{load}"
    dcp.save({"model": get_model_state_dict(source)}, checkpoint_id=folder)
    state = {"model": model.state_dict() if load == "in place" else get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=folder)
    if load == "by functions":
        set_model_state_dict(model, state["model"])
    check(model, f"dcp {load}")

model = DistributedDataParallel(_stepped() if rank == 0 else _network())
check(model, "DDP at its start")
if rank == 1:
    model.module[1].coeff = 7.0
model(x)
assert model.module[1].coeff == SCHEDULE(STEPS), (rank, model.module[1])
dist.barrier()
dist.destroy_process_group()
print("all is well", flush=True)
os._exit(0)  # PyTorch's own end aborts now and then
"""


def test_two_processes_load_and_broadcast_it(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _PROCESS, str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in torch_environments(2)
    ]
    for process in end(processes):
        assert process.status == 0, process.err
        assert "all is well" in process.out
