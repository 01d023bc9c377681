"""copy_weights: every rule in both directions, what is matched with what, and that nothing is ever half-copied."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

from torch import nn

from grl import DannSchedule, jax_impl, torch_impl
from grl.parity import PortError, Rule, copy_weights, pair, register_rule
from grl.weights.differences import differing_weights
from grl.weights.flattened import find_flattened
from grl.weights.layer_rules import CONVOLUTION, LAYER_RULES, LINEAR
from grl.weights.rule import SAME, Layout, table
from grl.weights.rules import rule_of
from tests.support import nnx_models, torch_models
from tests.support.both_frameworks import assert_close, state_of

F64: dict[str, Any] = {"param_dtype": np.float64}


def run_torch(layer: Any, *xs: np.ndarray) -> np.ndarray:
    y = layer(*(torch.from_numpy(x) for x in xs))
    return (y[0] if isinstance(y, tuple) else y).detach().numpy()


def run_nnx(layer: Any, *xs: np.ndarray) -> np.ndarray:
    return np.asarray(layer(*(jax.numpy.asarray(x) for x in xs)))


def run_cell(layer: Any, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    state = (h, h) if "LSTM" in type(layer).__name__ else h
    if isinstance(layer, nn.Module):
        states = tuple(map(torch.from_numpy, state)) if isinstance(state, tuple) else torch.from_numpy(state)
        y = layer(torch.from_numpy(x), states)
        return (y[0] if isinstance(y, tuple) else y).detach().numpy()
    return np.asarray(layer(jax.tree.map(jax.numpy.asarray, state), jax.numpy.asarray(x))[1])


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def cells(torch_cell: Any, nnx_cell: Any, **kwargs: Any) -> Any:
    return (
        lambda: torch_cell(3, 4).double(),
        lambda: nnx_cell(3, 4, rngs=nnx.Rngs(0), **F64, **kwargs),
        lambda ours, theirs: (run_cell(ours, normal(2, 3), normal(2, 4)), run_cell(theirs, normal(2, 3), normal(2, 4))),
    )


def attention(ours: Any, theirs: Any) -> tuple[np.ndarray, np.ndarray]:
    sizes = ours.embed_dim, ours.kdim, ours.vdim
    q, k, v = (normal(2, 5, size) for size in sizes)
    return run_torch(ours, q, k, v), run_nnx(theirs, q, k, v)


def alike(*shape: int, last: bool = False) -> Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]:
    """Both on one input; `last`: nnx takes the channels last."""

    def run(ours: Any, theirs: Any) -> tuple[np.ndarray, np.ndarray]:
        x = normal(*shape)
        if not last:
            return run_torch(ours, x), run_nnx(theirs, x)
        return run_torch(ours, x), np.moveaxis(run_nnx(theirs, np.moveaxis(x, 1, -1)), -1, 1)

    return run


def sequences(torch_rnn: Any, nnx_cell: Any, bidirectional: bool = False) -> Any:
    def build() -> Any:
        rnns = [nnx.RNN(nnx_cell(3, 4, rngs=nnx.Rngs(i), **F64)) for i in range(2)]
        return nnx.Bidirectional(*rnns) if bidirectional else rnns[0]

    return lambda: torch_rnn(3, 4, batch_first=True, bidirectional=bidirectional).double(), build, alike(2, 5, 3)


def simple(size: int, out: int, *, rngs: Any, **how: Any) -> Any:
    return nnx.SimpleCell(size, out, dtype=np.float64, rngs=rngs, **how)


class LlamaRMSNorm(nn.Module):
    """As transformers has it, but for its cast to float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, x: Any) -> Any:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class GemmaRMSNorm(LlamaRMSNorm):
    def forward(self, x: Any) -> Any:
        return (1 + self.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class NormOfItsOwn(LlamaRMSNorm):
    def forward(self, x: Any) -> Any:
        return super().forward(x - x.mean(-1, keepdim=True))


LAYERS = {
    "LinearGeneral": (
        lambda: nn.Linear(6, 4).double(),
        lambda: nnx.LinearGeneral(6, (2, 2), rngs=nnx.Rngs(0), **F64),
        lambda ours, theirs: (run_torch(ours, normal(3, 6)), run_nnx(theirs, normal(3, 6)).reshape(3, 4)),
    ),
    "InstanceNorm": (
        lambda: nn.InstanceNorm2d(3, affine=True).double(),
        lambda: nnx.InstanceNorm(3, epsilon=1e-5, rngs=nnx.Rngs(0), **F64),
        alike(2, 3, 4, 4, last=True),
    ),
    "GroupNorm(1) as LayerNorm": (
        lambda: nn.GroupNorm(1, 3).double(),
        lambda: nnx.LayerNorm(3, epsilon=1e-5, reduction_axes=(1, 2, 3), rngs=nnx.Rngs(0), **F64),
        alike(2, 3, 4, 4, last=True),
    ),
    "InstanceNorm as LayerNorm": (
        lambda: nn.InstanceNorm2d(3, affine=True).double(),
        lambda: nnx.LayerNorm(3, epsilon=1e-5, reduction_axes=(1, 2), rngs=nnx.Rngs(0), **F64),
        alike(2, 3, 4, 4, last=True),
    ),
    "InstanceNorm as GroupNorm": (
        lambda: nn.InstanceNorm2d(3, affine=True).double(),
        lambda: nnx.GroupNorm(3, num_groups=3, epsilon=1e-5, rngs=nnx.Rngs(0), **F64),
        alike(2, 3, 4, 4, last=True),
    ),
    "LayerNorm": (
        lambda: nn.LayerNorm(3).double(),
        lambda: nnx.LayerNorm(3, epsilon=1e-5, rngs=nnx.Rngs(0), **F64),
        alike(2, 5, 3),
    ),
    "RMSNorm of transformers": (
        lambda: LlamaRMSNorm(3).double(),
        lambda: nnx.RMSNorm(3, rngs=nnx.Rngs(0), **F64),
        alike(2, 5, 3),
    ),
    "PReLU": (lambda: nn.PReLU().double(), lambda: nnx.PReLU(param_dtype=np.float64), alike(3, 4)),
    "attention": (
        lambda: nn.MultiheadAttention(6, 3, batch_first=True).double(),
        lambda: nnx.MultiHeadAttention(3, 6, decode=False, attention_fn=nnx_models.attend, rngs=nnx.Rngs(0), **F64),
        attention,
    ),
    "attention to other sizes": (
        lambda: nn.MultiheadAttention(6, 3, kdim=5, vdim=5, batch_first=True, bias=False).double(),
        lambda: nnx.MultiHeadAttention(
            3,
            6,
            in_kv_features=5,
            use_bias=False,
            decode=False,
            attention_fn=nnx_models.attend,
            rngs=nnx.Rngs(0),
            **F64,
        ),
        attention,
    ),
    "LSTMCell": cells(nn.LSTMCell, nnx.LSTMCell),
    "OptimizedLSTMCell": cells(nn.LSTMCell, nnx.OptimizedLSTMCell),
    "GRUCell": cells(nn.GRUCell, nnx.GRUCell),
    "RNNCell": cells(nn.RNNCell, simple),
    "LSTM of single gates": sequences(nn.LSTM, nnx.LSTMCell),
    "RNN in both directions": sequences(nn.RNN, simple, bidirectional=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_the_same_function_after_either_copy(name: str) -> None:
    make_ours, make_theirs, run = LAYERS[name]
    torch.manual_seed(0)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours, theirs = make_ours(), make_theirs()
        settle(ours)
        copy_weights(ours, theirs)
        assert_close(*run(ours, theirs)[::-1], "nnx")
        again = make_ours()
        before = run(again, theirs)[0]
        copy_weights(theirs, again)
        after, expected = run(again, theirs)
        assert np.abs(before - expected).max() > 1e-3  # the copy did something
        assert_close(after, expected, "PyTorch")


def settle(module: Any) -> None:
    """Random numbers everywhere, but where nnx has none."""
    with torch.no_grad():
        for parameter_name, parameter in module.named_parameters():
            parameter.copy_(torch.rand_like(parameter) - 0.3)
            if "bias_hh" in parameter_name and "GRU" in type(module).__name__:
                parameter[2 * len(parameter) // 3 :] = 0


@pytest.mark.parametrize("make", [lambda: torch_impl.GRL(0.1), lambda: torch_impl.GRL(DannSchedule(50))])
def test_coefficient_and_step_of_a_reversal_are_carried_exactly(make: Any) -> None:
    ours, theirs = make(), jax_impl.GRL(DannSchedule(50))
    for _ in range(3):
        ours.step()
    copy_weights(ours, theirs)
    assert theirs.coeff == ours.coeff
    theirs.step()
    assert theirs.coeff == DannSchedule(50)(4)
    copy_weights(theirs, ours)
    state = {name: tensor.item() for name, tensor in ours.state_dict().items()}
    assert state == {"coefficient": DannSchedule(50)(4), "step_count": 4}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_target_keeps_its_dtype(dtype: str) -> None:
    ours = nn.Linear(3, 2, dtype=torch.float64)
    theirs = nnx.Linear(3, 2, param_dtype=dtype, rngs=nnx.Rngs(0))
    copy_weights(ours, theirs)
    assert theirs.kernel[...].dtype == dtype
    rounded = ours.weight.detach().to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(np.asarray(theirs.kernel[...], np.float32), rounded.T)
    back = nn.Linear(3, 2, dtype=getattr(torch, dtype))
    weight = back.weight
    copy_weights(theirs, back)
    assert back.weight is weight
    np.testing.assert_array_equal(back.weight.detach().float().numpy(), rounded)


def test_an_abstract_model_becomes_a_concrete_one() -> None:
    ours = nn.Linear(3, 2)
    theirs = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    copy_weights(ours, theirs)
    np.testing.assert_array_equal(theirs.kernel[...], ours.weight.detach().numpy().T)


# What is matched with what.


def linears(**sizes: tuple[int, int]) -> Any:
    return nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})


def nnx_linears(**sizes: tuple[int, int]) -> Any:
    return nnx.Dict({name: nnx.Linear(*size, rngs=nnx.Rngs(i)) for i, (name, size) in enumerate(sizes.items())})


def matched(ours: Any, theirs: Any, **how: Any) -> dict[str, str]:
    return {one.torch_name: one.nnx_name for one in pair(ours, theirs, **how).pairs}


def test_names_go_before_order() -> None:
    assert matched(linears(a=(2, 2), b=(2, 2)), nnx_linears(b=(2, 2), a=(2, 2))) == {"a": "a", "b": "b"}


def test_same_shapes_go_in_their_order() -> None:
    ours, theirs = linears(a=(2, 2), b=(2, 3), c=(2, 2)), nnx_linears(x=(2, 2), y=(2, 2), z=(2, 3))
    assert matched(ours, theirs) == {"a": "x", "b": "z", "c": "y"}


def test_names_that_contradict_the_order_are_not_overruled() -> None:
    for names in (("fc1", "fc2"), ("q_proj", "k_proj")):
        other = {"fc1": "linear2 linear1", "q_proj": "key query"}[names[0]].split()
        pairing = pair(linears(**dict.fromkeys(names, (2, 2))), nnx_linears(**dict.fromkeys(other, (2, 2))))
        assert not pairing.pairs
        assert pairing.unmatched_torch == tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))
        (sentence,) = pairing.ambiguous
        assert all(name in sentence for name in (*names, *other))


def test_unequal_numbers_are_not_guessed() -> None:
    ours, theirs = linears(a=(2, 2), b=(2, 2), c=(3, 2)), nnx_linears(x=(2, 2), y=(2, 2), z=(2, 2), u=(3, 2))
    before = state_of(theirs)
    with pytest.raises(PortError) as caught:
        copy_weights(ours, theirs)
    message = str(caught.value)
    assert "a.weight, a.bias, b.weight, b.bias of the PyTorch model have no counterpart" in message
    assert "x.kernel, x.bias, y.kernel, y.bias, z.kernel, z.bias of the nnx model have no counterpart" in message
    assert "a, b (PyTorch) and x, y, z (nnx) have the same shapes, and there are not equally many" in message
    assert_unchanged(theirs, before)
    assert matched(ours, theirs, names={"a": "z"}) == {"a": "z", "c": "u"}


def test_indices_count_only_where_both_sides_have_the_same() -> None:
    def linear() -> Any:
        return nn.Linear(2, 2)

    ours = nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear())
    theirs = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(i)) for i in range(3)])
    assert matched(ours, theirs) == {"0": "0", "2": "1", "4": "2"}
    theirs = nnx.Sequential(*(nnx.Linear(2, 2, rngs=nnx.Rngs(0)) if i % 2 == 0 else nnx.relu for i in range(5)))
    assert matched(ours, theirs) == {"0": "layers.0", "2": "layers.2", "4": "layers.4"}


def test_an_order_that_nnx_has_lost_is_not_guessed() -> None:
    class Theirs(nnx.Module):
        def __init__(self, *names: str) -> None:
            for i, name in enumerate(names):
                setattr(self, name, nnx.Linear(2, 2, rngs=nnx.Rngs(i)))

    ours, named, numbered = linears(a=(2, 2), b=(2, 2)), Theirs("stem", "head"), Theirs("fc2", "fc10")
    assert matched(ours, named) == {"a": "stem", "b": "head"}
    pairing = pair(ours, nnx.clone(named))
    assert not pairing.pairs
    assert "a, b (PyTorch) and head, stem (nnx) have the same shapes, and nnx.merge, clone" in pairing.ambiguous[0]
    assert matched(ours, nnx.clone(numbered)) == {"a": "fc2", "b": "fc10"}
    assert matched(linears(stem=(2, 2), head=(2, 2)), nnx.clone(named)) == {"stem": "stem", "head": "head"}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("fc1 fc2 fc3", "fc0 fc1 fc2"), ("layer_0 layer_1", "layer_1 layer_2"), ("fc fc1 fc2", "fc1 fc2 fc3")],
)
def test_numbers_that_start_elsewhere_are_an_order(ours: str, theirs: str) -> None:
    sides = [dict.fromkeys(names.split(), (2, 2)) for names in (ours, theirs)]
    expected = dict(zip(ours.split(), theirs.split(), strict=True))
    assert matched(linears(**sides[0]), nnx_linears(**sides[1])) == expected


def test_tensors_whose_order_nnx_has_lost_are_not_guessed() -> None:
    class Ours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    class Theirs(nnx.Module):
        def __init__(self) -> None:
            self.scale, self.bias = nnx.Param(jax.numpy.zeros(4)), nnx.Param(jax.numpy.ones(4))

    theirs = Theirs()
    copy_weights(Ours(), theirs)
    assert theirs.scale[...].all()
    with pytest.raises(PortError, match=r"gamma, beta \(PyTorch\) and bias, scale \(nnx\) .* has lost the order"):
        copy_weights(Ours(), nnx.clone(theirs))


def test_a_variable_of_no_array_is_no_traceback() -> None:
    outer = nnx.Dict(a=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), count=nnx.Variable(0))
    assert copy_weights(linears(a=(2, 2)), outer, strict=False).unmatched_nnx == ("count",)
    outer = nnx.Dict(a=outer["a"], table=nnx.Variable({"k": jax.numpy.zeros(3)}))
    with pytest.raises(PortError, match="table: got a Variable that holds a dict; expected one array"):
        pair(linears(a=(2, 2)), outer)


def test_layers_of_no_numbers_are_paired_by_name() -> None:
    class Theirs(nnx.Module):
        def __init__(self) -> None:
            self.fc = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
            self.reverse = jax_impl.GRL(0.5)

    ours = nn.ModuleDict({"fc": nn.Linear(2, 2), "drop": nn.Dropout(), "reverse": torch_impl.GRL(0.3)})
    assert matched(ours, Theirs()) == {"fc": "fc", "drop": "drop", "reverse": "reverse"}


def test_what_one_side_has_more_is_named() -> None:
    ours = nn.Linear(2, 2)
    theirs = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(PortError, match=r"^bias of the PyTorch model has no counterpart\.$"):
        copy_weights(ours, theirs)
    with pytest.raises(PortError, match=r"^bias of the PyTorch model has no counterpart\.$"):
        copy_weights(theirs, ours)
    pairing = copy_weights(ours, theirs, strict=False)
    assert pairing.unmatched_torch == ("bias",)
    np.testing.assert_array_equal(theirs.kernel[...], ours.weight.detach().numpy().T)
    theirs = nnx.MultiHeadAttention(2, 4, normalize_qk=True, decode=False, rngs=nnx.Rngs(0))
    with pytest.raises(PortError, match=r"query_ln.scale, key_ln.scale of the nnx model have no counterpart"):
        copy_weights(nn.MultiheadAttention(4, 2), theirs)


@pytest.mark.parametrize("norm", [GemmaRMSNorm, NormOfItsOwn])
def test_a_norm_that_computes_something_else_is_no_rms_norm(norm: Any) -> None:
    with pytest.raises(PortError, match=r"^norm.weight of the PyTorch model .*; norm.scale of the nnx model"):
        copy_weights(nn.ModuleDict({"norm": norm(3)}), nnx.Dict(norm=nnx.RMSNorm(3, rngs=nnx.Rngs(0))))


def test_a_norm_of_its_own_on_both_sides_is_a_tensor_on_both() -> None:
    class Own(nnx.Module):
        def __init__(self) -> None:
            self.weight = nnx.Param(jax.numpy.zeros(3))

    nnx_model = nnx.Dict(norm=Own())
    copy_weights(nn.ModuleDict({"norm": LlamaRMSNorm(3)}), nnx_model)
    assert nnx_model["norm"].weight[...].all()


def test_shapes_that_differ_are_named() -> None:
    ours, theirs = linears(a=(2, 3), b=(3, 4)), nnx_linears(a=(2, 3), b=(5, 4))
    before = state_of(theirs)
    with pytest.raises(PortError, match=r"^b.weight is \(4, 3\) in PyTorch, b in the same layout \(4, 5\) in nnx\.$"):
        copy_weights(ours, theirs)
    assert_unchanged(theirs, before)
    assert copy_weights(ours, theirs, strict=False).mismatched.keys() == {"b.weight"}
    np.testing.assert_array_equal(theirs["a"].kernel[...], ours["a"].weight.detach().numpy().T)
    assert_unchanged(theirs["b"], {name[2:]: array for name, array in before.items() if name.startswith("b.")})


def test_tied_weights_are_one_place() -> None:
    class Ours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.decoder = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.decoder.weight = self.embedding.weight

    class Attends(nnx.Module):
        def __init__(self) -> None:
            self.embedding = nnx.Embed(5, 3, rngs=nnx.Rngs(0))

    class Theirs(Attends):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nnx.Linear(3, 5, use_bias=False, rngs=nnx.Rngs(1))

    ours, theirs, attends = Ours(), Theirs(), Attends()
    before = state_of(ours)
    with pytest.raises(PortError, match=r"decoder.weight: is tied to embedding.weight in the target"):
        copy_weights(theirs, ours)
    assert_unchanged(ours, before)
    copy_weights(ours, theirs)
    np.testing.assert_array_equal(theirs.decoder.kernel[...], theirs.embedding.embedding[...].T)
    copy_weights(ours, attends)
    copy_weights(attends, ours)
    assert_unchanged(ours, before)


def test_a_module_used_twice_is_one() -> None:
    ours = nn.ModuleDict({"a": nn.Linear(2, 2)})
    ours["b"] = ours["a"]
    theirs = nnx_linears(a=(2, 2), b=(2, 2))
    copy_weights(ours, theirs)
    np.testing.assert_array_equal(theirs["a"].kernel[...], theirs["b"].kernel[...])


def test_a_tensor_of_a_module_of_ones_own_goes_by_its_name() -> None:
    class Ours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(2, 3))
            self.register_buffer("mean", torch.randn(4))
            self.register_buffer("scratch", torch.zeros(4), persistent=False)

    class Theirs(nnx.Module):
        def __init__(self) -> None:
            self.token = nnx.Param(jax.numpy.zeros((2, 3)))
            self.mean = nnx.BatchStat(jax.numpy.zeros(4))

    ours, theirs = Ours(), Theirs()
    copy_weights(ours, theirs)
    np.testing.assert_array_equal(theirs.token[...], ours.token.detach().numpy())
    np.testing.assert_array_equal(theirs.mean[...], ours.mean.numpy())


class TorchScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))


class NnxScale(nnx.Module):
    def __init__(self) -> None:
        self.gain = nnx.Param(jax.numpy.zeros((3, 2)))


SCALE = Rule(
    "Scale",
    (TorchScale,),
    (NnxScale,),
    *table(weight=("gain", Layout(lambda array, _: array.T, lambda array, _: array.T))),
)


def assert_scale_is_unknown() -> None:
    with pytest.raises(PortError, match="weight of the PyTorch model has no counterpart"):
        copy_weights(TorchScale(), NnxScale())


def test_a_registered_rule_carries_a_layer_of_ones_own_until_it_is_taken_back() -> None:
    assert_scale_is_unknown()
    torch_scale, nnx_scale = TorchScale(), NnxScale()
    with register_rule(SCALE) as rule:
        assert rule is SCALE
        copy_weights(torch_scale, nnx_scale)
        np.testing.assert_array_equal(nnx_scale.gain[...], torch_scale.weight.detach().numpy().T)
    assert_scale_is_unknown()


def test_the_last_registered_rule_wins_and_each_is_taken_back_by_itself() -> None:
    wrong = dataclasses.replace(SCALE, to_nnx=lambda arrays, module: {"gain": 2 * arrays["weight"].T})
    undo_wrong = register_rule(wrong)
    undo_right = register_rule(SCALE)
    try:
        assert pair(TorchScale(), NnxScale()).pairs[0].rule is SCALE
        undo_right()
        undo_right()
        assert pair(TorchScale(), NnxScale()).pairs[0].rule is wrong
    finally:
        undo_right()
        undo_wrong()
    assert_scale_is_unknown()


def test_a_rule_is_taken_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), register_rule(SCALE):
        raise ZeroDivisionError
    assert_scale_is_unknown()


def test_every_class_of_the_built_in_rules_exists() -> None:
    for rule in LAYER_RULES:
        for name in (*rule.torch, *rule.nnx):
            module, _, attribute = name.rpartition(".")
            assert isinstance(getattr(importlib.import_module(module), attribute), type), name


def test_layers_of_this_package_name_their_kind_themselves() -> None:
    norm = jax_impl.dann.ConvNet((1, 8, 8), (2,), 3, rngs=nnx.Rngs(0)).norms[0]
    for layer, side, kind in (
        (torch_impl.GRL(), "torch", "GRL"),
        (jax_impl.GRL(), "nnx", "GRL"),
        (norm, "nnx", "BatchNorm"),
    ):
        rule = rule_of(layer, side)
        assert rule is not None
        assert rule.kind == kind


# Nothing is half-copied.


def assert_unchanged(model: Any, before: dict[str, np.ndarray]) -> None:
    after = state_of(model)
    assert after.keys() == before.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_bias_that_nnx_has_no_place_for_is_refused() -> None:
    ours = nn.ModuleDict({"fc": nn.Linear(3, 3), "gru": nn.GRU(3, 4)})
    theirs = nnx.Dict(fc=nnx.Linear(3, 3, rngs=nnx.Rngs(0)), gru=nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))))
    before = state_of(theirs)
    with pytest.raises(PortError, match=r"^gru: bias_hh_l0 of the candidate .* is not 0, and nnx.GRUCell has no"):
        copy_weights(ours, theirs)
    assert_unchanged(theirs, before)


def test_a_bias_that_pytorch_has_not_has_to_be_zero() -> None:
    ours, theirs = nn.LSTMCell(3, 4, bias=False), nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0))
    copy_weights(theirs, ours)
    before = state_of(ours)
    theirs.hi.bias[...] = jax.numpy.ones(4)
    with pytest.raises(PortError, match="bias_ih: the target has no such array, and the source's is not 0"):
        copy_weights(theirs, ours)
    assert_unchanged(ours, before)
    copy_weights(ours, theirs)
    assert not theirs.hi.bias[...].any()


@pytest.mark.parametrize("towards", ["nnx", "torch"])
def test_a_number_beyond_the_range_leaves_the_target_as_it_was(towards: str) -> None:
    ours = linears(a=(2, 2), b=(2, 2))
    theirs = nnx_linears(a=(2, 2), b=(2, 2))
    source, target = (ours, theirs) if towards == "nnx" else (theirs, ours)
    if towards == "nnx":
        theirs["b"].bias.set_value(theirs["b"].bias[...].astype(np.float16))
        with torch.no_grad():
            ours["b"].bias[1] = 1e30
    else:
        ours["b"].half()
        theirs["b"].bias[...] = jax.numpy.float32([1.0, 1e30])
    before = state_of(target)
    with pytest.raises(PortError, match=r"^b.bias: a number is beyond the range of (torch.)?float16"):
        copy_weights(source, target)
    assert_unchanged(target, before)


def test_nan_and_infinity_are_copied_as_they_are() -> None:
    ours, theirs = nn.Linear(2, 3), nnx.Linear(2, 3, param_dtype="bfloat16", rngs=nnx.Rngs(0))
    with torch.no_grad():
        ours.bias.copy_(torch.tensor([torch.nan, torch.inf, -0.0]))
    copy_weights(ours, theirs)
    found = np.asarray(theirs.bias[...], np.float32)
    assert np.isnan(found[0])
    assert found[1] == np.inf
    assert np.signbit(found[2])


def test_a_failure_in_the_middle_is_taken_back() -> None:
    ours, theirs = linears(a=(2, 2), b=(2, 2), c=(2, 2)), nnx_linears(a=(2, 2), b=(2, 2), c=(2, 2))
    with torch.inference_mode():
        ours["b"].weight = nn.Parameter(torch.ones(2, 2), requires_grad=False)  # which nothing may write to, outside
    before = state_of(ours)
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        copy_weights(theirs, ours)
    assert_unchanged(ours, before)


def test_targets_without_memory_are_refused() -> None:
    theirs = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(PortError, match="weight: the tensor has no memory yet"):
        copy_weights(theirs, nn.Linear(2, 2, device="meta"))
    with pytest.raises(PortError, match="weight: the tensor is on the meta device and holds no numbers"):
        copy_weights(nn.Linear(2, 2, device="meta"), theirs)
    abstract = nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(PortError, match="bias: the Variable is abstract and holds no numbers"):
        copy_weights(abstract, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2), "target: got a second model of PyTorch"),
        (lambda: nn.Linear(2, 2), lambda: {}, "target: got a builtins.dict; expected an nn.Module"),
        (lambda: 3, lambda: nn.Linear(2, 2), "source: got a builtins.int"),
    ],
)
def test_other_things_are_refused(source: Any, target: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        copy_weights(source(), target())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"nothing": "a"}, "names: got 'nothing'; expected a module or tensor of the PyTorch model, such as a, "),
        ({"a": "a.kernal"}, "names: got 'a.kernal'; expected a module or tensor of the nnx model, such as a.kernel"),
        (
            {"a": "a.kernel"},
            "names: got 'a' and 'a.kernel', a Linear and a parameter; expected two of one kind: 'a' with a,"
            " or 'a.kernel' with a.weight or a.bias.",
        ),
        ({"a": ("a", LINEAR)}, "names: got a layout for 'a', a Linear; expected a tensor."),
    ],
)
def test_an_error_of_names_says_what_would_have_been_accepted(names: Any, message: str) -> None:
    with pytest.raises(PortError, match=re.escape(message)):
        copy_weights(linears(a=(2, 2)), nnx_linears(a=(2, 2)), names=names)


class TorchProjection(nn.Module):
    """A projection and a norm that are no layers of PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(5, 3))
        self.gain, self.shift = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(5))
        self.head = nn.Linear(5, 2)


class NnxProjection(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.dense, self.norm = nnx.Linear(3, 5, rngs=rngs), nnx.RMSNorm(3, rngs=rngs)
        self.output = nnx.Linear(5, 2, rngs=rngs)


TENSORS = {"projection": ("dense.kernel", LINEAR), "shift": "dense.bias", "gain": ("norm.scale", SAME)}


@pytest.mark.parametrize("towards", ["nnx", "torch"])
def test_names_pair_single_tensors_with_a_layout(towards: str) -> None:
    torch_model, nnx_model = TorchProjection(), NnxProjection()
    with pytest.raises(PortError, match="projection, gain, shift of the PyTorch model have no counterpart"):
        copy_weights(torch_model, nnx_model)
    source, target = (torch_model, nnx_model) if towards == "nnx" else (nnx_model, torch_model)
    pairing = copy_weights(source, target, names=TENSORS)
    assert {one.torch_name: one.nnx_name for one in pairing.parameters} == {
        "projection": "dense.kernel",
        "gain": "norm.scale",
        "shift": "dense.bias",
    }
    state = {name: tensor.detach().numpy() for name, tensor in torch_model.named_parameters()}
    np.testing.assert_array_equal(nnx_model.dense.kernel[...], state["projection"].T)
    np.testing.assert_array_equal(nnx_model.dense.bias[...], state["shift"])
    np.testing.assert_array_equal(nnx_model.norm.scale[...], state["gain"])
    np.testing.assert_array_equal(nnx_model.output.kernel[...], state["head.weight"].T)
    assert not differing_weights(torch_model, nnx_model, pair(torch_model, nnx_model, TENSORS)).differing
    with torch.no_grad():
        torch_model.projection += 1
    assert differing_weights(torch_model, nnx_model, pairing).differing.keys() == {"projection"}


def test_a_layer_whose_tensors_are_given_in_part_misses_the_rest() -> None:
    names = {name: TENSORS[name] for name in ("projection", "gain")}
    with pytest.raises(PortError, match=r"^shift of the PyTorch .*; dense.bias of the nnx model has no counterpart"):
        copy_weights(TorchProjection(), NnxProjection(), names=names)


def test_a_layout_that_does_not_fit_is_a_mismatch() -> None:
    names = TENSORS | {"projection": ("dense.kernel", SAME)}
    with pytest.raises(PortError, match=r"projection is \(5, 3\) in PyTorch, dense.kernel .* \(3, 5\) in nnx"):
        copy_weights(TorchProjection(), NnxProjection(), names=names)
    names = TENSORS | {"gain": ("norm.scale", CONVOLUTION)}
    with pytest.raises(PortError, match="gain"):
        copy_weights(TorchProjection(), NnxProjection(), names=names)


def test_a_single_tensor_behind_a_flattened_map_is_not_copied_unpermuted() -> None:
    names: Any = {"classifier.0.bias": "fc1.bias", "classifier.0.weight": ("fc1.kernel", LINEAR)}
    with pytest.raises(
        PortError, match=r"names: got 'fc1.*', behind a flattened feature map; expected its whole layer"
    ):
        copy_weights(torch_models.LeNet(), nnx_models.LeNet(rngs=nnx.Rngs(0)), names=names)


# A layer behind a flattened feature map.


class Flat(nnx.Module):
    """Convolution, pooling, flatten and linear layers, in one of the ways to write it."""

    def __init__(self, how: str = "") -> None:
        rngs = nnx.Rngs(0)
        self.how = how
        self.conv = nnx.Conv(2, 4, (3, 3), padding=0, rngs=rngs)
        self.norm = nnx.GroupNorm(4, 2, rngs=rngs)
        self.reverse = jax_impl.GRL(0.5)
        self.fc1 = nnx.Linear(4 if how == "mean" else 36, 36, rngs=rngs)
        self.fc2 = nnx.Linear(36, 3, rngs=rngs)

    def __call__(self, x: Any, *mask: Any) -> Any:
        x = nnx.avg_pool(nnx.gelu(self.norm(self.conv(x))), (2, 2), (2, 2))
        if self.how == "mean":
            x = x.mean((1, 2))
        if self.how == "transposed":
            x = x.transpose(0, 3, 1, 2)
        if self.how == "odd":
            x = x.transpose(0, 2, 3, 1)[:, ::-1]
        if self.how == "needs more":
            x = x * mask[0]
        return self.fc2(nnx.relu(self.fc1(self.reverse(x.reshape(len(x), -1)))))


@pytest.mark.parametrize(("how", "found"), [("", {"fc1": 4}), ("transposed", {}), ("mean", {})])
def test_the_order_of_a_flattened_map_is_found_by_experiment(how: str, found: dict[str, int]) -> None:
    model = Flat(how)
    before = state_of(model)
    assert find_flattened(model) == found
    assert_unchanged(model, before)


def test_no_experiment_is_made_without_a_suspicion(monkeypatch: pytest.MonkeyPatch) -> None:
    from grl.weights import flattened_in_nnx

    monkeypatch.setattr(flattened_in_nnx, "changed_inputs", lambda *args: pytest.fail("an experiment"))
    assert find_flattened(nnx_models.ResNet(width=2, blocks=(1,), rngs=nnx.Rngs(0))) == {}
    assert find_flattened(nnx_models.Transformer(rngs=nnx.Rngs(0))) == {}


@pytest.mark.parametrize(
    ("how", "why"), [("needs more", "something else than one square image"), ("odd", "its inputs are in neither order")]
)
def test_an_unknown_order_is_not_guessed(how: str, why: str) -> None:
    with pytest.raises(PortError, match=f"flatten: fc1 .* whose order cannot be found out: .*{why}; pass flatten="):
        find_flattened(Flat(how))
    assert find_flattened(Flat(how), {"fc1": (4, 3, 3)}) == {"fc1": 4}
    assert find_flattened(Flat(how), {}) == {}


@pytest.mark.parametrize(
    ("flatten", "message"),
    [
        ({"fc9": (4, 3, 3)}, "flatten: got 'fc9'; expected a layer such as fc1"),
        ({"conv": (4, 3, 3)}, "flatten: got 'conv'; expected a layer such as fc1"),
        ({"fc1": (4, 3, 2)}, r"flatten: got 'fc1': \(4, 3, 2\); expected \(C, H, W\) with 36 elements"),
    ],
)
def test_wrong_shapes_of_flattened_maps_are_refused(flatten: Any, message: str) -> None:
    with pytest.raises(PortError, match=message):
        find_flattened(Flat(), flatten)


def test_pytorchs_names_do_for_flattened_layers_too() -> None:
    ours, theirs = torch_models.LeNet(), nnx.eval_shape(lambda: nnx_models.LeNet(rngs=nnx.Rngs(0)))
    copy_weights(ours, theirs, flatten={"classifier.0": (16, 5, 5)})
    weight = ours.classifier[0].weight.detach().numpy().reshape(120, 16, 5, 5)
    np.testing.assert_array_equal(theirs.fc1.kernel[...].reshape(5, 5, 16, 120), weight.transpose(2, 3, 1, 0))


class Head(nnx.Module):
    """A convolution and a layer behind a flatten, in whatever order they are defined, taking H·C or H·W·C at a time."""

    def __init__(self, how: str) -> None:
        rngs = nnx.Rngs(0)
        is_first = how in ("last", "pixel by pixel")
        if is_first:
            self.trunk = nnx.Conv(1, 4, (3, 3), padding=1, rngs=rngs)
        sizes = {"rows": 24, "recurrent": 24, "unused": 24}
        if how == "recurrent":
            self.head = nnx.RNN(nnx.LSTMCell(24, 2, rngs=rngs))
        else:
            self.head = nnx.Linear(sizes.get(how, 144), 2, rngs=rngs)
        if not is_first:
            self.trunk = nnx.Conv(1, 4, (3, 3), padding=1, rngs=rngs)
        self.how = how

    def __call__(self, x: Any) -> Any:
        x = self.trunk(x)
        if self.how in ("rows", "recurrent"):
            return self.head(x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], -1))
        return x if self.how == "unused" else self.head(x.reshape(len(x), -1))


class TorchHead(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.trunk, self.how = nn.Conv2d(1, 4, 3, padding=1), how
        rows = how in ("rows", "recurrent")
        self.head = nn.LSTM(24, 2, batch_first=True) if how == "recurrent" else nn.Linear(24 if rows else 144, 2)

    def forward(self, x: Any) -> Any:
        x = self.trunk(x)
        if self.how in ("rows", "recurrent"):
            y = self.head(x.permute(0, 3, 1, 2).flatten(2))
            return y[0] if self.how == "recurrent" else y
        if self.how == "pixel by pixel":
            x = x.flatten(2).transpose(1, 2)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("how", ["first", "sorted", "rows", "recurrent", "pixel by pixel"])
def test_a_layer_behind_a_flatten_is_found_wherever_it_is_defined_and_however_it_is_flattened(how: str) -> None:
    torch.manual_seed(0)
    ours, theirs = TorchHead(how), Head(how)
    if how == "sorted":
        theirs = nnx.clone(Head("last"))
    copy_weights(ours, theirs)
    x = normal(2, 1, 6, 6).astype(np.float32)
    np.testing.assert_allclose(run_nnx(theirs, np.moveaxis(x, 1, -1)), run_torch(ours, x), atol=1e-5)


def test_a_suspect_that_the_experiment_does_not_reach_is_not_copied_as_it_is() -> None:
    with pytest.raises(PortError, match=r"flatten: head .* no change of a map before it is seen in its inputs"):
        find_flattened(Head("unused"))
    assert find_flattened(Head("recurrent"), {"head": (4, 6, 1)}) == {"head": 4}


def test_a_flatten_of_pytorchs_in_another_order_is_not_copied_as_it_is() -> None:
    class Odd(TorchHead):
        def forward(self, x: Any) -> Any:
            return self.head(self.trunk(x).flip(1).transpose(1, 2).flatten(1))

    with pytest.raises(PortError, match=r"flatten: head .* PyTorch's head has its inputs in neither"):
        copy_weights(Odd(""), Head("first"))


class RawConvolution(nn.Module):
    """A convolution that is no module of PyTorch's, before a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.fc = nn.Linear(36, 2)

    def forward(self, x: Any) -> Any:
        return self.fc(nn.functional.conv2d(x, self.kernel).flatten(1))


class ConvolutionAndLinear(nnx.Module):
    def __init__(self) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(36, 2, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.fc(self.conv(x).reshape(len(x), -1))


def test_a_model_of_pytorch_without_a_convolution_that_is_a_module_flattens_as_usual() -> None:
    ours, theirs = RawConvolution(), ConvolutionAndLinear()
    copy_weights(ours, theirs, strict=False)
    weight = ours.fc.weight.detach().numpy().reshape(2, 4, 9).transpose(2, 1, 0).reshape(36, 2)
    np.testing.assert_array_equal(theirs.fc.kernel[...], weight)
