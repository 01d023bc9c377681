"""`grl check`: what it writes, what it prints, its exit status, and how it refuses."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from grl.backends import FRAMEWORKS
from grl.check.check_layer import select, versions
from grl.check.form import STATUSES
from grl.check.forms import our_forms
from grl.check.matrix import counts, records
from grl.check.peers import peer_forms
from grl.cli import main
from grl.parity import Cell, CheckError, check_layer
from tests.support.installed import HAS_FLAX, INSTALLED, each_backend

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs a framework")

# A module as users have it: in the working directory.
THEIRS = """
def forgetful(x, coeff):
    return x

def without_coefficient(x):
    return x

def needs_more(x, coeff, device):
    return x

def by_keyword(x, *, alpha=1.0):
    return {reverse}(x, alpha)

def returns_nothing(x, coeff):
    pass

def in_another_order(coeff, x):
    return x

number = 3

class Unmakable:
    def __init__(self):
        pass

class Picky:
    def __init__(self, coeff):
        raise RuntimeError("not today")

class Leaving:
    def __init__(self, coeff):
        raise SystemExit(0)

def leaves(x, coeff):
    raise SystemExit(0)

class NotCallable:
    def __init__(self, coeff):
        pass

class Made:
    def __call__(self, x):
        return x

made = Made()

class NeedsWidth:
    def __init__(self, coeff, width):
        pass

class Outer:
    right = staticmethod({reverse})

class InTheConstructor:
    def __init__(self, name="reversal", scale=1.0):
        self.scale = scale

    def __call__(self, x):
        return {reverse}(x, self.scale)

class InTheCall:
    def __call__(self, x, alpha):
        return {reverse}(x, alpha)

class WhateverComes:
    def __call__(self, *input):
        return {reverse}(*input)
"""


class Output(NamedTuple):
    status: int
    out: str
    err: str


def grl(*words: Any) -> Output:
    """Run a command in this process: what a shell would see, without seconds of imports for each."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["check", *map(str, words)])
    return Output(status, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for backend in INSTALLED:
        source = f"from grl.{backend}_impl import gradient_reversal\n" + THEIRS.format(reverse="gradient_reversal")
        (tmp_path / f"theirs_{backend}.py").write_text(source)
    yield tmp_path
    for backend in INSTALLED:
        sys.modules.pop(f"theirs_{backend}", None)


def test_json_has_versions_counts_and_cells(here: Path) -> None:
    assert grl("--only", "eager", "--only", "λ = 0, λ < 0", "--json", "check.json").status == 0
    figures = json.loads((here / "check.json").read_text(encoding="utf-8"))
    assert set(figures) == {"schema", "versions", "counts", "cells"}
    assert figures["schema"] == 1
    assert {"grl", "python", "numpy", *INSTALLED} <= set(figures["versions"])
    forms = [form for backend in INSTALLED for form in our_forms(backend)]
    assert [(c["backend"], c["form"], c["transformation"]) for c in figures["cells"]] == [
        (form.backend, form.name, name) for form in forms for name in ("eager", "λ = 0, λ < 0")
    ]
    for cell in figures["cells"]:
        assert list(cell) == ["backend", "form", "transformation", "status", "reason"]
        assert (cell["status"], cell["reason"]) == ("ok", "")
    assert figures["counts"] == {
        f"{form.backend} {form.name}": {"ok": 2, "refuses": 0, "n/a": 0, "WRONG": 0} for form in forms
    }
    assert [path.name for path in here.glob("*check*")] == ["check.json"]


def test_table_shows_every_form_and_transformation() -> None:
    output = grl("--only", "vmap of grad", "--only", "eager")
    assert (output.status, output.err) == (0, "")
    assert all(f"{name} {version}" in output.out for name, version in versions(INSTALLED).items())
    for backend in INSTALLED:
        assert FRAMEWORKS[backend] in output.out
        assert "eager" in output.out
        for status in STATUSES:
            assert status in output.out


@each_backend
def test_wrong_is_exit_status_1_with_expected_and_got(backend: str, here: Path) -> None:
    target = ("--target", f"theirs_{backend}:forgetful", "--backend", backend)
    output = grl(*target, "--only", "eager", "--json", "check.json")
    assert output.status == 1
    (cell,) = json.loads((here / "check.json").read_text(encoding="utf-8"))["cells"]
    assert (cell["form"], cell["status"]) == ("forgetful", "WRONG")
    assert cell["reason"].startswith("gradient: expected -0.53")
    assert f"WRONG {FRAMEWORKS[backend]}, eager (forgetful): {cell['reason']}" in output.out


@each_backend
def test_a_refusal_is_no_failure(backend: str) -> None:
    names = {"torch": "in-place operation afterwards", "jax": "linear_transpose"}
    output = grl("--backend", backend, "--only", names[backend])
    assert output.status == 0
    assert f"refuses {FRAMEWORKS[backend]}, {names[backend]} (gradient_reversal" in output.out


@each_backend
def test_a_layer_that_ends_the_process_is_a_refusal_too_and_one_that_always_refuses_is_a_failure(backend: str) -> None:
    output = grl("--target", f"theirs_{backend}:leaves", "--backend", backend, "--only", "eager", "--only", "double")
    assert output.status == 1
    assert output.out.endswith("leaves: no cell is ok: it can be used nowhere.\n")
    assert f"refuses {FRAMEWORKS[backend]}, eager (leaves): SystemExit: 0" in output.out


@each_backend
@pytest.mark.parametrize("name", ["by_keyword", "Outer.right", "InTheConstructor", "InTheCall", "WhateverComes"])
def test_targets_that_are_right(backend: str, name: str) -> None:
    output = grl("--target", f"theirs_{backend}:{name}", "--backend", backend, "--only", "eager", "--only", "double")
    assert (output.status, output.err) == (0, "")


@pytest.mark.skipif("torch" not in INSTALLED, reason="needs PyTorch")
def test_modules_without_a_constructor_and_with_a_frozen_coefficient_are_targets() -> None:
    import torch

    from grl.torch_impl import gradient_reversal

    class Bare(torch.nn.Module):
        def forward(self, *input: Any) -> Any:
            return gradient_reversal(*input)

    class Frozen(torch.nn.Module):
        def __init__(self, coeff: float) -> None:
            super().__init__()
            self.coeff = torch.nn.Parameter(torch.tensor(coeff), requires_grad=False)

        def forward(self, x: Any) -> Any:
            return gradient_reversal(x, self.coeff)

    for layer in (Bare, Frozen):
        cells = check_layer(layer, backend="torch", transformations=["eager", "λ = 0, λ < 0"])
        assert [cell.status for cell in cells] == ["ok", "ok"]


@each_backend
def test_our_own_classes_are_targets_like_any(backend: str) -> None:
    if backend == "jax" and not HAS_FLAX:
        pytest.skip("needs Flax")
    targets = {"torch": ["GRL", "GradientReverseFunction"], "jax": ["GRL", "linen.GRL"]}
    __import__(f"grl.{backend}_impl.{'module' if backend == 'torch' else 'linen'}")
    for name in targets[backend]:
        output = grl("--target", f"grl.{backend}_impl:{name}", "--backend", backend, "--only", "λ")
        assert (output.status, output.err) == (0, "")
        assert "no argument of the call" not in output.out


@each_backend
def test_peers_stand_beside_ours(backend: str, here: Path) -> None:
    grl("--peers", "--backend", backend, "--only", "eager", "--json", "check.json")
    figures = json.loads((here / "check.json").read_text(encoding="utf-8"))
    names = [form.name for form in (*our_forms(backend), *peer_forms(backend))]
    assert [cell["form"] for cell in figures["cells"]] == names
    assert {cell["status"] for cell in figures["cells"]} == {"ok"}
    assert set(figures["versions"]) == set(versions([backend], peers=True))


def test_picture_is_drawn_and_nothing_else_written(here: Path) -> None:
    before = set(here.iterdir())
    assert (
        grl(
            "--only", "eager", "--only", "linear_transpose" if "jax" in INSTALLED else "in-place", "--png", "a.png"
        ).status
        == 0
    )
    assert set(here.iterdir()) - before == {here / "a.png"}
    picture = (here / "a.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) > 10_000


@each_backend
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("forgetful", "got 'forgetful'; expected package.module:callable"),
        (":forgetful", "got ':forgetful'; expected package.module:callable"),
        (
            "no_such_module:f",
            "no_such_module cannot be imported (ModuleNotFoundError: No module named 'no_such_module')",
        ),
        ("THEIRS:nothing", "THEIRS has no nothing"),
        ("THEIRS:number", "int: got an object of type int, not callable"),
        ("THEIRS:without_coefficient", "without_coefficient: takes no coefficient"),
        ("THEIRS:needs_more", "needs_more: needs device too"),
        ("THEIRS:made", "Made: takes no coefficient"),
        ("THEIRS:returns_nothing", "returns_nothing: called with (x, λ), returned a NoneType"),
        ("THEIRS:in_another_order", "in_another_order: called with (x, λ), returned a float"),
        ("THEIRS:Unmakable", "Unmakable: takes no coefficient"),
        ("THEIRS:Picky", "Picky: cannot be made (RuntimeError: not today)"),
        ("THEIRS:Leaving", "Leaving: cannot be made (SystemExit: 0)"),
        ("THEIRS:NotCallable", "NotCallable: makes objects that cannot be called"),
        ("THEIRS:NeedsWidth", "NeedsWidth: needs width too"),
    ],
)
def test_bad_target_is_one_sentence(backend: str, target: str, sentence: str) -> None:
    module = f"theirs_{backend}"
    output = grl("--target", target.replace("THEIRS", module), "--backend", backend)
    assert (output.status, output.out) == (2, "")
    assert output.err.startswith(f"grl: --target: {sentence.replace('THEIRS', module)}")
    assert output.err.count("\n") == 1
    assert "expected" in output.err


@each_backend
def test_layers_that_learn_are_refused(backend: str, here: Path) -> None:
    if backend == "torch":
        source = "import torch\nclass L(torch.nn.Module):\n def __init__(self, coeff):\n  super().__init__()\n"
        source += "  self.w = torch.nn.Parameter(torch.ones(3))\n def forward(self, x):\n  return x * self.w\n"
    elif HAS_FLAX:
        source = "from flax import linen\nclass L(linen.Module):\n coeff: float = 1.0\n @linen.compact\n"
        source += " def __call__(self, x):\n  return linen.Dense(3)(x)\n"
    else:
        pytest.skip("needs Flax")
    (here / "learns.py").write_text(source)
    try:
        output = grl("--target", "learns:L", "--backend", backend)
    finally:
        sys.modules.pop("learns", None)
    assert output.status == 2
    assert output.err.startswith("grl: --target: L: has parameters to learn; expected")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--target", "math:sqrt"],
            "--target: got no --backend; expected --backend torch or --backend jax beside it.",
        ),
        (["--backend", "tensorflow"], "--backend: got 'tensorflow'; expected torch or jax."),
        (["--only", ""], "--only: got ''; expected (a part of) a name, such as "),
        (["--only", "teleport"], "--only: got 'teleport'; expected (a part of) a name, such as "),
        (
            ["--json", "nowhere/a.json"],
            "--json: got 'nowhere/a.json'; expected a file in a folder that can be written.",
        ),
        (["--png", "."], "--png: got '.'; expected a file in a folder that can be written."),
        (["--json", ""], "--json: got ''; expected a file in a folder that can be written."),
    ],
)
def test_bad_option_is_one_sentence(words: list[str], sentence: str) -> None:
    output = grl(*words)
    assert output.status == 2
    assert output.err.startswith(f"grl: {sentence}")
    assert output.err.count("\n") == 1


def test_a_file_is_written_whole_or_not_at_all(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "check.json").write_text("what was there")

    def fail(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    output = grl("--only", "eager", "--json", "check.json")
    assert (output.status, output.err) == (2, "grl: --json: check.json cannot be written: No space left on device.\n")
    monkeypatch.undo()
    assert (here / "check.json").read_text() == "what was there"
    assert [path.name for path in here.glob("*.json")] == ["check.json"]


# As a library


@each_backend
def test_library_gives_what_the_command_writes(backend: str, here: Path) -> None:
    only = ["eager", "vmap of grad"]
    grl("--backend", backend, *(word for name in only for word in ("--only", name)), "--json", "check.json")
    figures = json.loads((here / "check.json").read_text(encoding="utf-8"))
    cells = [cell for form in our_forms(backend) for cell in check_layer(form, backend=backend, transformations=only)]
    assert all(isinstance(cell, Cell) for cell in cells)
    assert (records(cells), counts(cells)) == (figures["cells"], figures["counts"])


@each_backend
def test_names_are_exact_or_parts(backend: str) -> None:
    everything = select([backend])[backend]
    (part,) = (name for name in everything if name == "eager")
    assert select([backend], ["eager"]) == {backend: [part]}
    assert select([backend], ["VMAP"])[backend] == [name for name in everything if "vmap" in name.lower()]
    assert select([backend], ["vmap", "eager"])[backend][0] == "eager"  # in the order of the table
    with pytest.raises(CheckError, match="transformations: got 'teleport'; expected"):
        check_layer(lambda x, coeff: x, backend=backend, transformations=["teleport"])


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(CheckError, match="backend: got 'mxnet'; expected torch or jax"):
        check_layer(lambda x, coeff: x, backend="mxnet")


# In processes of their own


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)


@each_backend
def test_with_one_framework_the_other_is_named_as_missing(backend: str) -> None:
    (missing,) = set(FRAMEWORKS) - {backend}
    run = _run(
        f"""
        import importlib.util, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == {missing!r} else find(name, *rest)
        sys.modules[{missing!r}] = None  # importing it raises
        from grl.cli import main
        print(main(["check", "--only", "eager"]))
        print(main(["check", "--backend", {missing!r}]))
        """
    )
    assert [line for line in run.stdout.splitlines() if line in ("0", "1", "2")] == ["0", "2"], run.stderr
    assert f'pip install "grl[{missing}]"' in run.stderr
    assert run.stderr.count("\n") == 1
    assert f"{FRAMEWORKS[missing]} is not installed: its layers are not checked." in run.stdout
    assert f"{FRAMEWORKS[backend]}, gradient_reversal: 1 checked" in run.stdout


def test_importing_parity_imports_no_framework() -> None:
    run = _run("import sys, grl.parity, grl.cli.app; print({'torch', 'jax', 'flax', 'matplotlib'} & set(sys.modules))")
    assert (run.stdout, run.stderr) == ("set()\n", "")


@pytest.mark.skipif("jax" not in INSTALLED, reason="needs JAX")
def test_a_collective_shows_on_two_devices(here: Path) -> None:
    (here / "gathers.py").write_text(
        textwrap.dedent(
            """
            import jax
            from jax.sharding import PartitionSpec
            from grl.jax_impl import gradient_reversal

            def layer(x, coeff):
                @jax.custom_vjp
                def gather(x):
                    return x

                def backward(_, g):
                    devices = jax.sharding.Mesh(jax.devices(), "all")
                    everywhere = jax.sharding.NamedSharding(devices, PartitionSpec())
                    return (jax.lax.with_sharding_constraint(g, everywhere) - 0 * g.sum(),)

                gather.defvjp(lambda x: (gather(x), None), backward)
                return gradient_reversal(gather(x), coeff)
            """
        )
    )
    run = _run(
        f"""
        import os, sys
        os.chdir({str(here)!r})
        from grl.cli import main
        print(main(["check", "--backend", "jax", "--only", "shard"]))
        print(main(["check", "--backend", "jax", "--target", "gathers:layer", "--only", "no collective"]))
        import jax
        print(len(jax.devices("cpu")), "CPUs")
        """
    )
    lines = run.stdout.splitlines()
    assert "2 CPUs" in lines, run.stderr
    assert [line for line in lines if line in ("0", "1", "2")] == ["0", "1"]
    assert "collectives: expected none, got all-" in run.stdout
