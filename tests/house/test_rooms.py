"""The house: imports point downward and never in a circle, and no room is too large. Read from the source."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

from tests.support.several_processes import ROOT

# A room may import from its own floor's rooms only what is its own, and anything from the floors below.
FLOORS = (
    {"grl"},  # the files that stand beside the rooms in grl/: coefficient, schedules, arrays, files, …
    {"grl.torch_impl", "grl.jax_impl"},
    {"grl.check", "grl.diagnosis", "grl.weights", "grl.datasets"},
    {"grl.port", "grl.experiment"},
    {"grl.parity", "grl.report"},
    {"grl.cli"},
    {"grl.__main__", "benchmarks"},
)
LARGEST = 0.30
"""The share of the lines of `grl/` that one room may have."""

# The one place in each product that picks a backend's module: module → what it may pick, by a string or by an import
# inside a function. Such an import is no arrow, because the picked module imports the one that picks it.
BY_NAME = {
    "grl.check.matrix": r"grl\.check\.\w+",
    "grl.weights.half": r"grl\.weights\.\w+_slots",
    "grl.parity": r"grl\.port\.\w+",
    "benchmarks.step": r"benchmarks\.resnet_\w+",
}

# The modules that import by a name which is not written in them, and what such a name stands for.
BY_VARIABLE = {
    "grl.check.forms": "the layer that a user names",
    "grl.check.jax_modules": "a package that may be missing",
    "grl.parity": "the layer packages, for their message about a missing framework",
}


def sources() -> dict[str, str]:
    """Return module → source, of the package and of the benchmarks."""
    files = [path for top in ("grl", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]
    return {_name(path): path.read_text(encoding="utf-8") for path in files}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(module: str, source: str, known: Set[str]) -> Iterator[str]:
    """Yield the known modules that a module imports, except those that it is there to pick."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    in_functions = {id(inner) for function in functions for inner in ast.walk(function)}
    for node, imported in _imports(module, tree, known):
        if id(node) not in in_functions or not re.fullmatch(BY_NAME.get(module, ""), imported):
            yield imported


def _imports(module: str, tree: ast.Module, known: Set[str]) -> Iterator[tuple[ast.AST, str]]:
    """Yield each import with its node, wherever it stands and also for annotations only (`TYPE_CHECKING`).

    A string that is the full name of a module counts as well: `import_module` may get it through a variable.
    """
    names = {name for name in known if "." in name}
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            package = _absolute(module, node, known)
            for alias in node.names:
                inner = f"{package}.{alias.name}"
                if inner in known:
                    yield node, inner
                elif package in known:
                    yield node, package
        elif isinstance(node, ast.Call) and _imports_by_name(node) and isinstance(node.args[0], ast.JoinedStr):
            yield from ((node, other) for other in _matching(node.args[0], known))
        elif isinstance(node, ast.Constant) and id(node) not in texts and node.value in names:
            yield node, str(node.value)


def _absolute(module: str, node: ast.ImportFrom, known: Set[str]) -> str:
    """Return the package that `from … import` names, with the leading dots resolved."""
    if not node.level:
        return node.module or ""
    is_package = any(other.startswith(f"{module}.") for other in known)
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def _imports_by_name(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in ("import_module", "__import__") and bool(call.args)


def _matching(name: ast.JoinedStr, known: Set[str]) -> list[str]:
    """Return the modules that an f-string may name."""
    pieces = [re.escape(str(p.value)) if isinstance(p, ast.Constant) else r"[\w.]+" for p in name.values]
    return [other for other in sorted(known) if re.fullmatch("".join(pieces), other)]


def imports_by_variable(source: str) -> bool:
    """Return whether a module imports by a name that is no literal and does not begin with one."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and _imports_by_name(node)]
    return any(not _has_literal_start(call.args[0]) for call in calls)


def _has_literal_start(name: ast.expr) -> bool:
    if isinstance(name, ast.JoinedStr):
        return isinstance(name.values[0], ast.Constant)
    return isinstance(name, ast.Constant)


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Return module → the modules that it imports."""
    return {name: set(imports(name, source, modules.keys())) - {name} for name, source in modules.items()}


def room_of(module: str) -> str:
    rooms = [room for floor in FLOORS for room in floor if module == room or module.startswith(f"{room}.")]
    return max(rooms, key=len)


def floor_of(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room_of(module) in floor)


def upward(arrows: Mapping[str, Set[str]]) -> list[str]:
    """Return the imports that point to a higher floor, or to another room of the same floor."""
    return [
        f"{module} -> {other}"
        for module, others in arrows.items()
        for other in sorted(others)
        if floor_of(other) > floor_of(module)
        or (floor_of(other) == floor_of(module) and room_of(other) != room_of(module))
    ]


def circles(arrows: Mapping[str, Set[str]]) -> list[set[str]]:
    """Return the sets of modules that reach one another along the arrows."""
    reached = {module: _reached(module, arrows) for module in arrows}
    groups = {frozenset(other for other in reached[m] if m in reached[other]) for m in arrows if m in reached[m]}
    return [set(group) for group in groups]


def _reached(module: str, arrows: Mapping[str, Set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(arrows[module])
    while waiting:
        following = waiting.pop()
        if following not in reached:
            reached.add(following)
            waiting += arrows.get(following, ())
    return reached


def test_every_folder_is_a_room_and_every_room_is_there() -> None:
    folders = {f"grl.{folder.parent.name}" for folder in (ROOT / "grl").glob("*/__init__.py")}
    rooms = {room for floor in FLOORS for room in floor}
    assert folders == rooms - {"grl", "grl.__main__", "benchmarks"}
    assert BY_NAME.keys() | BY_VARIABLE.keys() <= sources().keys()


def test_the_map_in_the_readme_shows_every_folder_from_the_lowest_floor_up() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The rooms")[2]
    shown = re.findall(r"^( *[\w.]+/) ", section.split("```")[1], re.MULTILINE)
    rooms = ["grl", *(f"grl.{name.strip(' /')}" for name in shown if name.startswith("  "))]
    assert shown[0] == "grl/"
    assert set(rooms) == {f"grl.{folder.parent.name}" for folder in (ROOT / "grl").glob("*/__init__.py")} | {"grl"}
    assert [floor_of(room) for room in rooms] == sorted(floor_of(room) for room in rooms)
    assert {"examples/", "benchmarks/", "tests/", "docs/"} <= set(shown)
    assert all((ROOT / "grl" / name.strip() if name.startswith(" ") else ROOT / name).is_dir() for name in shown)


def test_no_import_points_to_a_higher_room() -> None:
    assert upward(graph(sources())) == []


def test_no_imports_go_in_a_circle() -> None:
    assert circles(graph(sources())) == []


def test_no_room_is_too_large() -> None:
    lines: dict[str, int] = defaultdict(int)
    for module, source in sources().items():
        if module.startswith("grl"):
            lines[room_of(module)] += source.count("\n")
    total = sum(lines.values())
    assert {room: count for room, count in lines.items() if count > LARGEST * total} == {}


def test_only_named_modules_import_by_a_variable() -> None:
    assert {module for module, source in sources().items() if imports_by_variable(source)} == BY_VARIABLE.keys()
    assert imports_by_variable("import_module(name)")
    assert imports_by_variable("__import__(f'{room}.app')")
    assert not imports_by_variable("import_module(f'grl.check.{name}'), import_module('grl')")


@pytest.mark.parametrize(
    "line",
    [
        "import grl.cli.app",
        "import grl.cli.app as app",
        "from grl.cli import app",
        "from grl.cli.app import *",
        "from .cli import app",
        "from . import cli",
        "if TYPE_CHECKING:\n    from grl.cli.app import app",
        "def f():\n    from grl.cli.app import app",
        "importlib.import_module('grl.cli.app')",
        "import_module(f'grl.cli.{name}')",
        "import_module(f'grl.{name}')",
        "__import__('grl.cli.app')",
        "NEEDED = ('grl.cli.app',)\nfor name in NEEDED:\n    import_module(name)",
        "sys.modules['grl.cli']",
    ],
)
def test_an_import_upward_is_seen_however_it_is_written(line: str) -> None:
    modules = {"grl.schedules": line, "grl.cli": "", "grl.cli.app": ""}
    assert any("grl.schedules -> grl.cli" in arrow for arrow in upward(graph(modules)))


@pytest.mark.parametrize(
    ("module", "line"), [("grl.port", "from ..cli import app"), ("grl.port.runs.inputs", "from ...cli.app import app")]
)
def test_a_relative_import_is_resolved_from_packages_and_from_modules(module: str, line: str) -> None:
    modules = {"grl.port": "", "grl.port.runs": "", "grl.port.runs.inputs": "", "grl.cli": "", "grl.cli.app": ""}
    assert upward(graph(modules | {module: line})) == [f"{module} -> grl.cli.app"]


def test_a_circle_is_seen() -> None:
    modules = {"grl.check.a": "import grl.check.b", "grl.check.b": "from grl.check import c", "grl.check.c": ""}
    modules["grl.check"] = ""
    assert circles(graph(modules)) == []
    modules["grl.check.c"] = "def f():\n    import grl.check.a"
    assert circles(graph(modules)) == [{"grl.check.a", "grl.check.b", "grl.check.c"}]


@pytest.mark.parametrize("pick", ["import_module(f'grl.check.{name}')", "from grl.check import torch_derivatives"])
def test_only_the_one_place_of_a_product_picks_a_backend_and_only_within_it(pick: str) -> None:
    picks = f"def half_of(name):\n    {pick}"
    rest = {"grl.check": "", "grl.check.torch_derivatives": "import grl.check.matrix, grl.check.other"}
    assert circles(graph({"grl.check.matrix": picks, "grl.check.other": "", **rest})) == []
    assert circles(graph({"grl.check.matrix": "", "grl.check.other": picks, **rest})) != []
    upward_pick = {"grl.check.matrix": "def half_of(name):\n    import_module(f'grl.{name}.app')", "grl.cli.app": ""}
    assert upward(graph(upward_pick)) == ["grl.check.matrix -> grl.cli.app"]
