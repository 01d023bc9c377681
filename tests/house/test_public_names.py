"""Every public name exists, is typed and documented, and has its twin on the other side under the same name."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

import pytest

import grl
from tests.support.installed import HAS_FLAX, HAS_TORCH

ROOT = Path(grl.__file__).parent
TWINS = {"GradientReverseFunction": "gradient_reversal_jvp"}
"""The one pair of names that differs: PyTorch's raw rule and JAX's forward-mode twin."""

DOORS = (
    *("grl", "grl.schedules", "grl.coefficient", "grl.torch_impl", "grl.jax_impl", "grl.jax_impl.linen"),
    *("grl.parity", "grl.parity.strategies", "grl.experiment", "grl.datasets", "grl.report"),
)
"""The modules that a user imports from. What they offer documents every argument, result and error."""

ANY = 300
"""How often `grl/` may use the type `Any`: only where a framework leaves no type."""

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
        pytest.skip(str(error))  # a framework or an extra is not installed


def _public(module: ModuleType) -> dict[str, Any]:
    """Return the values of `__all__`, except those that need a package that is not installed."""
    values = {}
    for name in getattr(module, "__all__", ()):
        try:
            values[name] = getattr(module, name)
        except ImportError as error:
            if (error.name or "").startswith("grl"):
                raise
    return values


def _tree(name: str) -> ast.Module:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def test_there_are_modules_to_look_at() -> None:
    assert len(_modules()) > 100
    assert set(DOORS) <= set(_modules())


@pytest.mark.parametrize("name", _modules())
def test_module_is_documented(name: str) -> None:
    assert inspect.getdoc(_import(name)), f"{name} has no docstring"


@pytest.mark.parametrize("name", _modules())
def test_module_says_what_is_public(name: str) -> None:
    module = _import(name)
    defines = [node for node in _tree(name).body if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign)]
    if not defines and name not in DOORS:
        assert inspect.getdoc(module), "a folder's `__init__.py` may have a docstring and nothing else"
        return
    assert getattr(module, "__all__", ()), f"{name} has no `__all__`"
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [public for public in module.__all__ if public not in dir(module)]
    assert not missing, f"dir({name}) does not show {missing}"


@pytest.mark.parametrize("name", _modules())
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    module = _import(name)
    for public, value in _public(module).items():
        is_alias = get_origin(value) is not None  # a type alias, whose docstring stands below it in the source
        if public.startswith("__") or is_alias or not (callable(value) or isinstance(value, ModuleType)):
            continue
        documentation = value.__dict__.get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
        assert documentation, f"{name}.{public} has no docstring"
        generated = dataclasses.is_dataclass(value) and documentation.startswith(f"{public}(")
        assert not generated, f"{name}.{public} has only the docstring that dataclass makes up"


@pytest.mark.parametrize("name", _modules())
def test_public_methods_are_documented(name: str) -> None:
    for public, value in _public(_import(name)).items():
        for method in _methods(value):
            assert inspect.getdoc(getattr(value, method)), f"{name}.{public}.{method} has no docstring"


def _methods(value: Any) -> Iterator[str]:
    """Yield the public methods and properties that a class of this package defines itself."""
    for method, member in vars(value).items() if inspect.isclass(value) else ():
        function = getattr(member, "__func__", member.fget if isinstance(member, property) else member)
        if inspect.isfunction(function) and function.__module__ == value.__module__ and not method.startswith("_"):
            yield method


@pytest.mark.parametrize("name", _modules())
def test_documented_arguments_are_those_of_the_signature(name: str) -> None:
    for public, value in _own(_import(name)).items():
        documented = _documented_arguments(value)
        if documented and not (inspect.isclass(value) and not _parameters(value)):
            inherited = _inherited_fields(value)
            missing = [name for name in _arguments(value) if name not in documented and name not in inherited]
            assert not missing, f"{name}.{public}: `Args` leaves out {missing}"
            unknown = documented - {parameter.name for parameter in _parameters(value)}
            assert not unknown, f"{name}.{public}: `Args` lists {sorted(unknown)}, which the signature does not have"


@pytest.mark.parametrize("door", DOORS)
def test_what_a_user_imports_documents_arguments_results_and_errors(door: str) -> None:
    values = {public: value for public, value in _public(_import(door)).items() if _is_documented_call(value)}
    assert values or door == "grl", f"{door} offers nothing to call"
    for public, value in values.items():
        documentation = inspect.getdoc(value) or ""
        if _arguments(value):
            assert _documented_arguments(value), f"{door}.{public} takes arguments; its docstring has no `Args:`"
        missing = [error for error in _raised(value) if error not in _section(documentation, "Raises")]
        assert not missing, f"{door}.{public} raises {missing}; its docstring does not say so"
        if inspect.isfunction(value) and value.__annotations__.get("return") not in (None, "None"):
            says = re.match("Return|Yield|Draw", documentation) or re.search("(Returns|Yields):", documentation)
            assert says, f"{door}.{public} does not say what it returns"
        if re.search(r"\b(Array|Tensor|NDArray)\b", str(value.__annotations__)):
            assert re.search(r"shape|scalar|\(\w+,|any array", documentation), f"{door}.{public} names no shape"


def _own(module: ModuleType) -> dict[str, Any]:
    """Return the public functions and classes that the module defines itself."""
    return {
        name: value
        for name, value in _public(module).items()
        if _is_documented_call(value) and value.__module__ == module.__name__
    }


def _is_documented_call(value: Any) -> bool:
    if inspect.isclass(value):
        return not issubclass(value, BaseException) and not getattr(value, "_is_protocol", False)
    return inspect.isfunction(value)


def _parameters(value: Any) -> list[inspect.Parameter]:
    is_record = dataclasses.is_dataclass(value) or hasattr(value, "_fields")  # a NamedTuple has the latter
    if inspect.isclass(value) and not is_record:
        if "__init__" not in vars(value):
            return []
        value = value.__init__
    parameters = inspect.signature(value).parameters.values()
    # Flax gives `parent` and `name` to every Linen module.
    return [p for p in parameters if p.name not in ("self", "parent", "name" if _is_linen(value) else "self")]


def _is_linen(value: Any) -> bool:
    return inspect.isclass(value) and "parent" in inspect.signature(value).parameters


def _arguments(value: Any) -> list[str]:
    parameters = [p for p in _parameters(value) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    # The annotation of a run's setting holds its explanation, from which `grl train --help` is made.
    return [p.name for p in parameters if p.name[0] != "_" and not str(p.annotation).startswith("Annotated[")]


def _inherited_fields(value: Any) -> set[str]:
    """Return the fields that the dataclass above a dataclass has, and explains."""
    base = value.__base__ if inspect.isclass(value) else None
    return {field.name for field in dataclasses.fields(base)} if base and dataclasses.is_dataclass(base) else set()


def _section(documentation: str, title: str) -> str:
    """Return the indented text below a title of a docstring, such as "Args"."""
    match = re.search(rf"^{title}:[ ]*\n((?:[ ]+.*\n?|\n(?=[ ]))*)", documentation, re.MULTILINE)
    return match[1] if match else ""


def _documented_arguments(value: Any) -> set[str]:
    """Return the names that the section `Args` explains; one line may explain several: `a, b: what they are`."""
    lines = textwrap.dedent(_section(inspect.getdoc(value) or "", "Args")).splitlines()
    heads = [match[1] for line in lines if (match := re.match(r"((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*):", line))]
    return {name.lstrip("*") for head in heads for name in head.split(", ")}


def _raised(value: Any) -> list[str]:
    """Return the names of the errors that the body of a function raises itself."""
    if not inspect.isfunction(value) or value.__code__.co_filename.startswith("<"):
        return []
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    except OSError:  # hypothesis compiles its own wrapper around a composite strategy
        return []
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    errors = [error.func if isinstance(error, ast.Call) else error for error in raised]
    return sorted({error.id for error in errors if isinstance(error, ast.Name) and error.id[0].isupper()})


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
@pytest.mark.parametrize("package", ["torch_impl", "jax_impl", "parity"])
def test_all_is_what_a_star_import_gives_and_what_dir_shows(package: str) -> None:
    module = importlib.import_module(f"grl.{package}")
    assert set(module.__all__) <= set(dir(module))
    names: dict[str, Any] = {}
    exec(f"from grl.{package} import *", names)
    assert set(names) - {"__builtins__"} == set(module.__all__)


def test_same_files_on_both_sides() -> None:
    sides = [
        {
            file.name
            for file in (ROOT / side).glob("*.py")
            if file.name == "__init__.py" or not file.name.startswith("_")
        }
        for side in ("torch_impl", "jax_impl")
    ]
    # Flax has two kinds of layer, and JAX's convolution is the faster one on a CPU.
    assert sides[1] - sides[0] <= {"linen.py", "convolution.py"}
    assert sides[0] <= sides[1]
    assert "function.py" in sides[0]


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


def uses_of_any(source: str) -> int:
    """Count the places where a module uses the name `Any`, as a type or otherwise; its import is none."""
    nodes = ast.walk(ast.parse(source))
    return sum(getattr(node, "id", getattr(node, "attr", None)) == "Any" for node in nodes)


def test_any_is_rare() -> None:
    counts = {path: uses_of_any(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}
    largest = sorted(((count, str(path.relative_to(ROOT))) for path, count in counts.items()), reverse=True)[:5]
    assert sum(counts.values()) <= ANY, f"more uses of `Any` than {ANY}; most are in {largest}"


def test_uses_of_any_are_counted_wherever_they_stand() -> None:
    source = "import typing\nfrom typing import Any\nx: dict[str, Any]\ndef f(y: Any = 1) -> typing.Any: ...\n"
    assert uses_of_any(source) == 3
    assert uses_of_any("any(x)\n# Any\n'Any'\n") == 0


def test_package_says_its_version_and_is_typed() -> None:
    assert grl.__version__.count(".") == 2
    assert (ROOT / "py.typed").exists()
