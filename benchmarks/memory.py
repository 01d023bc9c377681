"""`memory`: the bytes that each form keeps between forward and backward, and the peak of both.

The floor keeps nothing and takes the memory of one gradient, which is the result.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.form import Backend, TimedForm
from benchmarks.record import Row, explain
from benchmarks.settings import COEFF, Settings, Tell

__all__ = ["count", "run"]

SIZE = 2**22  # bytes of x: so large that the few bytes of λ are negligible


def run(found: Sequence[Backend], settings: Settings, tell: Tell) -> list[Row]:
    """Count the bytes of all forms."""
    rows: list[Row] = []
    for backend in found:
        # On the CPU, bytes are counted operator by operator, and a compiled program has no operators.
        modes = {"eager", "jit"} | ({"compiled"} if settings.on_gpu else set())
        forms = [form for form in backend.forms if not form.direct and form.mode in modes]
        for done, form in enumerate(forms):
            tell(done, len(forms), f"{backend.name}, {form.name}")
            backend.start()
            row = Row("memory", backend.name, form.name, form.kind, "peak", "bytes", {"bytes": SIZE})
            try:
                counted = count(backend, form, SIZE)
                rows += [replace(row, measure=measure, samples=[float(n)]) for measure, n in counted.items()]
            except Exception as error:
                rows.append(replace(row, failure=explain(error)))
    return rows


def count(backend: Any, form: TimedForm, size: int) -> dict[str, int]:
    """Return the bytes "retained" between forward and backward and, where it can be told, those at the "peak".

    Args:
        backend: a `Backend`.
        form: one of its forms, of a mode that `run` measures.
        size: bytes of x.
    """
    return (_count_in_torch if backend.name == "torch" else _count_in_jax)(backend, form, size)


def _count_in_torch(backend: Any, form: TimedForm, size: int) -> dict[str, int]:
    import torch

    function, further = form.make(COEFF)
    ((leaf, g),) = backend.inputs(size, "float32", 1)
    if form.mode == "compiled":
        torch.autograd.grad(function(leaf, *further), leaf, g)  # compiles

    def work(ledger: Any) -> dict[str, int]:
        start = ledger.live()
        x = (
            leaf + 1
        )  # a feature, not a leaf: its producer keeps nothing, so that whatever lives on is kept by the layer
        y = function(x, *further)
        graph = y.grad_fn
        del x, y
        gc.collect()
        retained = ledger.live() - start
        del graph
        x = leaf + 1
        ledger.start_peak()
        start = ledger.live()
        (gradient,) = torch.autograd.grad(function(x, *further), x, g)
        del gradient
        return {"retained": retained, "peak": ledger.peak() - start}

    if backend.on_gpu:
        return work(_CudaLedger())
    with _ledger() as ledger:
        return work(ledger)


class _CudaLedger:
    """The bytes that PyTorch's allocator has handed out on the GPU."""

    def live(self) -> int:
        import torch

        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated())

    def start_peak(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        import torch

        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())


def _ledger() -> Any:
    """The same for the CPU, whose allocator keeps no count: each storage of an operator counts until it is freed."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class Ledger(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self._alive: dict[int, Any] = {}
            self._bytes = self._peak = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            known = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs or {})) if isinstance(t, Tensor)}
            result = func(*args, **(kwargs or {}))
            for tensor in tree_iter(result):
                if isinstance(tensor, Tensor):
                    self._add(tensor.untyped_storage(), known)
            return result

        def _add(self, storage: Any, known: set[int]) -> None:
            key = storage._cdata
            if key in self._alive or key in known:
                return
            size = storage.nbytes()

            def freed(_: Any) -> None:
                del self._alive[key]
                self._bytes -= size

            self._alive[key] = weakref.ref(storage, freed)
            self._bytes += size
            self._peak = max(self._peak, self._bytes)

        def live(self) -> int:
            return self._bytes

        def start_peak(self) -> None:
            self._peak = self._bytes

        def peak(self) -> int:
            return self._peak

    return Ledger()


def _count_in_jax(backend: Any, form: TimedForm, size: int) -> dict[str, int]:
    import jax

    function, further = form.make(COEFF)
    ((x, g),) = backend.inputs(size, "float32", 1)
    jit = jax.jit if form.mode == "jit" else lambda function: function
    _, pull = jit(lambda x, *further: jax.vjp(lambda x: function(x, *further), x))(x, *further)
    counted = {"retained": sum(leaf.nbytes for leaf in jax.tree.leaves(pull) if hasattr(leaf, "nbytes"))}
    if form.mode == "jit":

        def both(x: Any, g: Any, *further: Any) -> Any:
            return jax.vjp(lambda x: function(x, *further), x)[1](g)[0]

        found = jax.jit(both).lower(x, g, *further).compile().memory_analysis()
        assert found is not None
        counted["peak"] = found.temp_size_in_bytes + found.output_size_in_bytes
    return counted
