"""The house: imports point downward, never in a circle, and no room is too large. Read from the code."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

from tests.support.several_processes import ROOT

# A room may import from its own floor's list and from every floor below; the rooms of one floor do not know each other.
FLOORS = (
    {"grl"},  # what stands beside the rooms in grl/: coefficient, schedules, arrays, files, …
    {"grl.torch_impl", "grl.jax_impl"},
    {"grl.check", "grl.diagnosis", "grl.weights", "grl.datasets"},
    {"grl.port", "grl.experiment"},
    {"grl.parity", "grl.report"},
    {"grl.cli"},
    {"grl.__main__", "benchmarks"},
)
LARGEST = 0.30
"""The share of the lines of `grl/` that one room may have."""

# The one place in each product that picks a backend's module by its name: module → what that name may become. Such an
# import is no arrow: the module that is picked knows the one that picks it.
BY_NAME = {
    "grl.check.matrix": r"grl\.check\.\w+",
    "grl.diagnosis.reversal": r"grl\.diagnosis\.\w+",
    "grl.weights.tree": r"grl\.weights\.\w+",
    "grl.experiment.backend": r"grl\.experiment\.trainers\.\w+",
    "grl.parity": r"grl\.port\.\w+",
    "benchmarks.step": r"benchmarks\.resnet_\w+",
}


def sources() -> dict[str, str]:
    """Return module → source, of the package and of the benchmarks."""
    files = [path for top in ("grl", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]
    return {_name(path): path.read_text() for path in files}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(module: str, source: str, known: Set[str]) -> Iterator[str]:
    """Yield the modules that a module imports, wherever in it; for annotations alone (`TYPE_CHECKING`) as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and node.args:
            yield from _by_string(module, node.args[0], known)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _by_string(module: str, name: ast.expr, known: Set[str]) -> Iterator[str]:
    if isinstance(name, ast.Constant):
        if name.value in known:
            yield name.value
    elif isinstance(name, ast.JoinedStr):
        pattern = "".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"\w+" for part in name.values)
        matching = {other for other in known if re.fullmatch(pattern, other)}
        picked = BY_NAME.get(module, "")
        yield from (other for other in matching if not re.fullmatch(picked, other))


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
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
    """Return the sets of modules that reach one another (strongly connected, by Tarjan's rule)."""
    reached: dict[str, set[str]] = {}
    for module in arrows:
        seen: set[str] = set()
        rest = list(arrows[module])
        while rest:
            one = rest.pop()
            if one not in seen:
                seen.add(one)
                rest += arrows.get(one, ())
        reached[module] = seen
    groups = {frozenset(other for other in reached[m] if m in reached[other]) for m in arrows if m in reached[m]}
    return [set(group) for group in groups]


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


@pytest.mark.parametrize(
    "line",
    [
        "import grl.cli.app",
        "from grl.cli import app",
        "def f():\n    from grl.cli.app import app",
        "importlib.import_module('grl.cli.app')",
        "import_module(f'grl.cli.{name}')",
    ],
)
def test_an_import_upward_is_seen_however_it_is_written(line: str) -> None:
    modules = {"grl.schedules": line, "grl.cli": "", "grl.cli.app": ""}
    assert any("grl.schedules -> grl.cli" in arrow for arrow in upward(graph(modules)))


def test_a_circle_is_seen() -> None:
    modules = {"grl.check.a": "import grl.check.b", "grl.check.b": "from grl.check import c", "grl.check.c": ""}
    modules["grl.check"] = ""
    assert circles(graph(modules)) == []
    modules["grl.check.c"] = "def f():\n    import grl.check.a"
    assert circles(graph(modules)) == [{"grl.check.a", "grl.check.b", "grl.check.c"}]


def test_only_the_one_place_of_a_product_picks_by_name_and_only_within_it() -> None:
    picks = "import_module(f'grl.check.{name}')"
    rest = {"grl.check": "", "grl.check.torch_derivatives": "import grl.check.matrix, grl.check.other"}
    assert circles(graph({"grl.check.matrix": picks, "grl.check.other": "", **rest})) == []
    assert circles(graph({"grl.check.matrix": "", "grl.check.other": picks, **rest})) != []
    upward_pick = {"grl.check.matrix": "import_module(f'grl.{name}.app')", "grl.cli.app": ""}
    assert upward(graph(upward_pick)) == ["grl.check.matrix -> grl.cli.app"]
