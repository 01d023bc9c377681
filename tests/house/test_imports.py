"""What an import pulls in, and what it says where a framework is missing. Each in a process of its own."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.installed import HAS_FLAX, HAS_JAX, HAS_TORCH, needs_jax, needs_torch

ROOT = Path(__file__).resolve().parents[2]

# Makes packages look as if they were not installed.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def _run(code: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    code = BLOCKER.format(blocked=blocked) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def _imported(code: str) -> set[str]:
    """The top-level packages that are loaded after this code has run."""
    run = _run(textwrap.dedent(code) + "\nprint('loaded', *sorted({name.split('.')[0] for name in sys.modules}))")
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split()[1:])


def test_grl_imports_neither_framework() -> None:
    loaded = _imported("import grl, grl.schedules, grl.coefficient; grl.DannSchedule(10)(3)")
    assert "grl" in loaded
    assert not loaded & {"torch", "jax", "flax", "optax"}


@needs_torch
def test_torch_side_never_imports_jax() -> None:
    loaded = _imported(
        """
        import torch, grl, grl.torch_impl
        from grl.torch_impl import *
        layer = GRL(grl.DannSchedule(10))
        layer(torch.ones(2, requires_grad=True)).sum().backward()
        layer.step()
        """
    )
    assert "torch" in loaded
    assert not loaded & {"jax", "jaxlib", "flax", "optax"}


@needs_jax
def test_jax_side_never_imports_torch() -> None:
    names = "GRL, DANN, " if HAS_FLAX else ""
    loaded = _imported(
        f"""
        import jax, jax.numpy as jnp, grl, grl.jax_impl
        from grl.jax_impl import {names}gradient_reversal, gradient_reversal_jvp
        jax.grad(lambda x: gradient_reversal(x).sum())(jnp.ones(2))
        grl.DannSchedule(10)(jnp.int32(3))
        """
    )
    assert "jax" in loaded
    assert not loaded & {"torch"}


@needs_jax
def test_jax_functions_do_not_import_flax() -> None:
    loaded = _imported("import grl.jax_impl; grl.jax_impl.gradient_reversal; grl.jax_impl.gradient_reversal_jvp")
    assert "jax" in loaded
    assert "flax" not in loaded


@needs_jax
def test_jax_functions_work_without_flax() -> None:
    run = _run(
        """
        import jax, jax.numpy as jnp
        from grl.jax_impl import gradient_reversal, gradient_reversal_jvp
        for reverse in (gradient_reversal, gradient_reversal_jvp):
            print(jax.grad(lambda x: reverse(x, 0.5).sum())(jnp.ones(2)).tolist())
        """,
        blocked=("flax", "optax", "torch"),
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n") == ["[-0.5, -0.5]", "[-0.5, -0.5]", ""]


@pytest.mark.parametrize(
    ("code", "missing", "extra"),
    [
        ("import grl.torch_impl", "torch", "torch"),
        ("from grl.torch_impl import gradient_reversal", "torch", "torch"),
        ("from grl.torch_impl.function import gradient_reversal", "torch", "torch"),
        ("import grl.jax_impl", "jax", "jax"),
        ("from grl.jax_impl import gradient_reversal", "jax", "jax"),
        pytest.param("from grl.jax_impl import GRL", "flax", "jax", marks=needs_jax),
        pytest.param("from grl.jax_impl import DANN", "flax", "jax", marks=needs_jax),
        pytest.param("import grl.jax_impl as j; j.GRL", "flax", "jax", marks=needs_jax),
        pytest.param("import grl.jax_impl.linen", "flax", "jax", marks=needs_jax),
        pytest.param("from grl.jax_impl import linen", "flax", "jax", marks=needs_jax),
    ],
)
def test_missing_framework_names_the_extra(code: str, missing: str, extra: str) -> None:
    run = _run(
        f"""
        try:
            {code}
        except ImportError as error:
            print(type(error).__name__, error)
        """,
        blocked=(missing,),
    )
    assert run.returncode == 0, run.stderr
    assert f'pip install "grl[{extra}]"' in run.stdout


@needs_torch
def test_error_inside_an_installed_framework_is_not_hidden() -> None:
    # torch is there but one of its own imports is not: the extra would not help, and the message must not name it.
    run = _run("import grl.torch_impl", blocked=("typing_extensions",))
    assert run.returncode != 0
    assert "typing_extensions" in run.stderr
    assert "pip install" not in run.stderr


@needs_jax
def test_unknown_name_is_an_attribute_error() -> None:
    run = _run("import grl.jax_impl; grl.jax_impl.nothing_of_the_kind")
    assert "AttributeError" in run.stderr
    assert "nothing_of_the_kind" in run.stderr


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_isolation_tests_can_fail(package: str) -> None:
    if not {"torch": HAS_TORCH, "jax": HAS_JAX}[package]:
        pytest.skip(f"needs {package}")
    assert package in _imported(f"import grl, {package}")
    run = _run(f"import {package}", blocked=(package,))
    assert run.returncode != 0
    assert f"No module named '{package}'" in run.stderr
