"""`compile`: the layer under a compiler: programs over a ramp of λ, compile time, and the instructions that remain."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.form import Backend
from benchmarks.record import Row, explain
from benchmarks.settings import COEFF, Settings, Tell
from grl.check.form import Form, NotApplicableError
from grl.check.forms import function_form, our_forms
from grl.check.peers import peer_forms

__all__ = ["run"]

COEFFS: list[float] = np.linspace(-1, 1, 1000).tolist()
_UNITS = {"programs": "count", "compile time": "s", "added forward": "count", "added backward": "count"}


def run(found: Sequence[Backend], settings: Settings, tell: Tell) -> list[Row]:
    """Count for the forms of this project and, in a full run, of others."""
    rows = []
    for name in (backend.name for backend in found):
        measures = _in_torch() if name == "torch" else _in_jax()
        forms = [(form, "ours") for form in our_forms(name)] + [(form, "peer") for form in peer_forms(name)]
        forms.append((function_form("identity", name, lambda x, coeff: x), "floor"))
        if settings.effort != "full":  # the compilers take seconds for each
            forms = [forms[0], forms[-1]]
        for done, (form, kind) in enumerate(forms):
            tell(done, len(forms), f"{name}, {form.name}")
            for measure, count in measures.items():
                if kind == "floor" and measure != "compile time":
                    continue
                row = Row("compile", name, form.name, kind, measure, _UNITS[measure], {"values of λ": len(COEFFS)})
                try:
                    row.samples = [float(count(form))]
                except NotApplicableError:
                    continue
                except Exception as error:
                    row.failure = explain(error)
                rows.append(row)
    return rows


def _in_torch() -> dict[str, Callable[[Form], float]]:
    import torch
    from torch._inductor.utils import fresh_cache

    from grl.check.torch_programs import count_graphs, count_kernels

    def compile_time(form: Form) -> float:
        layer = form.make(COEFF)
        x = torch.ones(64, requires_grad=True)
        torch.compiler.reset()
        with fresh_cache():
            program = torch.compile(lambda x: torch.sin(layer(torch.sin(x))).sum(), fullgraph=True)
            return _first_less_second(lambda: torch.autograd.grad(program(x), x))

    return {
        "programs": lambda form: count_graphs(form, COEFFS),
        "compile time": compile_time,
        # Inductor's kernels, forward and backward together: the layer has no kernel of its own.
        "added backward": lambda form: count_kernels(form) - count_kernels(None),
    }


def _in_jax() -> dict[str, Callable[[Form], float]]:
    import jax
    import jax.numpy as jnp

    from grl.check.jax_programs import count_traces, instructions

    x = jnp.ones(1000)

    def pull(layer: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda x, g: jax.vjp(layer, x)[1](g)[0]

    def compile_time(form: Form) -> float:
        layer = form.make(COEFF)
        jax.clear_caches()
        program = jax.jit(jax.grad(lambda x: jnp.sin(layer(jnp.sin(x))).sum()))
        return _first_less_second(lambda: jax.block_until_ready(program(x)))

    return {
        "programs": lambda form: count_traces(form, COEFFS),
        "compile time": compile_time,
        "added forward": lambda form: len(instructions(form.make(COEFF), x)),
        "added backward": lambda form: len(instructions(pull(form.make(COEFF)), x, x)),
    }


def _first_less_second(call: Callable[[], Any]) -> float:
    """Return how much longer the first of two calls takes, in s: the compile time, if nothing was compiled before."""
    lasted = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        lasted.append(time.perf_counter() - start)
    return lasted[0] - lasted[1]
