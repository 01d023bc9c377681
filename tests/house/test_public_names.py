"""Every public name exists, is documented, and has its twin on the other side under the same name."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import grl
from tests.support.installed import HAS_FLAX, HAS_TORCH

ROOT = Path(grl.__file__).parent
TWINS = {
    "GradientReverseFunction": "gradient_reversal_jvp"
}  # the one name that differs: raw rule and forward-mode twin
needs_both = pytest.mark.skipif(not (HAS_TORCH and HAS_FLAX), reason="needs both frameworks")


def _modules() -> list[str]:
    names = [info.name for info in pkgutil.walk_packages([str(ROOT)], "grl.", onerror=lambda name: None)]
    return ["grl", *(name for name in names if not name.rpartition(".")[2].startswith("_"))]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").startswith("grl"):
            raise
        pytest.skip(str(error))  # of a framework or an extra that is not installed


def _public(module: ModuleType) -> dict[str, Any]:
    """The values of `__all__`, but for those that need what is not installed."""
    values = {}
    for name in getattr(module, "__all__", ()):
        try:
            values[name] = getattr(module, name)
        except ImportError as error:
            if (error.name or "").startswith("grl"):
                raise
    return values


@pytest.mark.parametrize("name", _modules())
def test_module_is_documented(name: str) -> None:
    assert inspect.getdoc(_import(name)), f"{name} has no docstring"


@pytest.mark.parametrize("name", _modules())
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    module = _import(name)
    for public, value in _public(module).items():
        if public.startswith("__") or not (callable(value) or isinstance(value, ModuleType)):
            continue
        documentation = value.__dict__.get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
        assert documentation, f"{name}.{public} has no docstring"
        generated = dataclasses.is_dataclass(value) and documentation.startswith(f"{public}(")
        assert not generated, f"{name}.{public} has only the docstring that dataclass makes up"


@pytest.mark.parametrize("name", _modules())
def test_public_methods_are_documented(name: str) -> None:
    module = _import(name)
    for public, value in _public(module).items():
        if not inspect.isclass(value):
            continue
        for method, member in vars(value).items():
            function = getattr(member, "__func__", member.fget if isinstance(member, property) else member)
            mine = inspect.isfunction(function) and function.__module__ == value.__module__
            if mine and not method.startswith("_"):
                assert inspect.getdoc(getattr(value, method)), f"{name}.{public}.{method} has no docstring"


@pytest.mark.parametrize("side", ["torch_impl", "jax_impl"])
@pytest.mark.parametrize("name", ["gradient_reversal", "GRL", "DANN"])
def test_layer_docstrings_say_arguments_results_errors_example_and_source(side: str, name: str) -> None:
    values = _public(_import(f"grl.{side}"))
    if name not in values:
        pytest.skip("needs Flax")
    documentation = inspect.getdoc(values[name]) or ""
    sections = ["Args:", "Raises:", "Example:", "Reference:"] + (["Returns:"] if name == "gradient_reversal" else [])
    missing = [section for section in sections if section not in documentation]
    assert not missing, f"grl.{side}.{name} does not say {missing}"
    assert "arXiv:1409.7495" in documentation or "arXiv:1505.07818" in documentation


@needs_both
def test_same_names_on_both_sides() -> None:
    from grl import jax_impl, torch_impl

    assert {TWINS.get(name, name) for name in torch_impl.__all__} == set(jax_impl.__all__)


@needs_both
def test_all_is_what_a_star_import_gives() -> None:
    for side in ("torch_impl", "jax_impl"):
        names: dict[str, Any] = {}
        exec(f"from grl.{side} import *", names)
        assert set(names) - {"__builtins__"} == set(importlib.import_module(f"grl.{side}").__all__)


def test_same_files_on_both_sides() -> None:
    sides = [
        {
            file.name
            for file in (ROOT / side).glob("*.py")
            if file.name == "__init__.py" or not file.name.startswith("_")
        }
        for side in ("torch_impl", "jax_impl")
    ]
    # Flax has two kinds of layer, and lays out its convolutions itself.
    assert sides[1] - sides[0] <= {"linen.py", "convolution.py"}
    assert sides[0] <= sides[1]


def _signature(function: Any) -> list[tuple[str, Any]]:
    parameters = list(inspect.signature(function).parameters.values())
    return [(p.name, p.default) for p in parameters if p.name not in ("self", "rngs")]


@needs_both
def test_same_signatures_on_both_sides() -> None:
    from grl import jax_impl, torch_impl
    from grl.jax_impl import linen

    function = [("x", inspect.Parameter.empty), ("coeff", 1.0)]
    for reverse in (torch_impl.gradient_reversal, jax_impl.gradient_reversal, jax_impl.gradient_reversal_jvp):
        assert _signature(reverse) == function
    call = [("x", inspect.Parameter.empty), ("coeff", None), ("reverse", True)]
    for method in (torch_impl.GRL.forward, jax_impl.GRL.__call__, linen.GRL.__call__):
        assert _signature(method) == call
    for layer in (torch_impl.GRL, jax_impl.GRL, linen.GRL):
        assert _signature(layer.__init__)[0] == ("coeff", 1.0)
        assert _signature(layer.step) == []
    assert _signature(torch_impl.DANN.__init__) == _signature(jax_impl.DANN.__init__)
    assert _signature(torch_impl.DANN.forward) == _signature(jax_impl.DANN.__call__)
    assert _signature(torch_impl.DANN.forward)[:2] == [("x", inspect.Parameter.empty), ("alpha", 1.0)]


def test_package_says_its_version_and_is_typed() -> None:
    assert grl.__version__.count(".") == 2
    assert (ROOT / "py.typed").exists()
