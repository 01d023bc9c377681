"""`article`: the table of an article on gradient reversal, measured again as it describes, with JAX in it.

It times a `Function` and an `nn.Module` around it, forward and backward, over 10,000 iterations on an RTX 3090. The
size of its batch is not given; here it is (64, 128) in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from benchmarks.form import Backend, TimedForm
from benchmarks.memory import count
from benchmarks.op import measure
from benchmarks.record import Row, explain, find, ratios, summarise
from benchmarks.settings import Group, Settings, Tell

__all__ = ["PAIRS", "run", "table"]

PAIRS = {
    "torch": (("article Function", "article Module"), ("gradient_reversal", "GRL")),
    "jax": (("custom_vjp, jit", "nnx GRL, jit"), ("custom_vjp, jit", "Linen GRL, jit")),
}
"""(function, layer around it), by framework."""

_SIZE = 4 * 64 * 128
_ROUNDS = 20
# As printed there: ms forward and backward of the Function; how much more the Module takes.
_PRINTED = ("the article's, RTX 3090", "0.12", "+8.3 %", "0.15", "+6.7 %", "about 1 KB")


def run(found: Sequence[Backend], settings: Settings, tell: Tell) -> list[Row]:
    """Time the pairs, and count the bytes of each."""
    tell(0, 1, f"{settings.article_iterations} iterations")
    timed = measure(
        "article",
        found,
        Group(_SIZE),
        settings,
        _forms,
        measures=("forward", "backward"),
        repeat=settings.article_iterations // _ROUNDS,
        rounds=(_ROUNDS, _ROUNDS),
    )
    return [*timed, *_bytes(found)]


def _forms(backend: Backend) -> list[TimedForm]:
    floor = "identity" if backend.name == "torch" else "identity, jit"
    return [form for form in backend.forms if form.name in {*_names(backend), floor}]


def _names(backend: Backend) -> set[str]:
    return {name for pair in PAIRS[backend.name] for name in pair}


def _bytes(found: Sequence[Backend]) -> Iterator[Row]:
    for backend in found:
        for form in (form for form in _forms(backend) if form.name in _names(backend)):
            row = Row("article", backend.name, form.name, form.kind, "peak", "bytes", {"bytes": _SIZE})
            try:
                row.samples = [float(count(backend, form, _SIZE)["peak"])]
            except Exception as error:
                row.failure = explain(error)
            yield row


def table(rows: Sequence[Row]) -> Table:
    """Return the article's table: its own line, then what was measured here."""
    shown = Table(title="article: Function against Module", box=box.SIMPLE_HEAD)
    shown.add_column("Function, then Module")
    for name in ("forward", "Module", "backward", "Module", "bytes at the peak"):
        shown.add_column(name, justify="right")
    shown.add_row(*_PRINTED)
    for framework, pairs in PAIRS.items():
        for function, module in pairs:
            cells = [cell for measure in ("forward", "backward") for cell in _cells(rows, function, module, measure)]
            peak = find(rows, framework=framework, form=function, measure="peak")
            if all(cells):
                shown.add_row(f"{function}, then {module}", *cells, f"{peak[0].samples[0]:,.0f}" if peak else "")
    shown.caption = "ms an iteration; what the layer around it adds"
    return shown


def _cells(rows: Sequence[Row], function: str, module: str, measure: str) -> tuple[str, str]:
    one, other = (find(rows, form=name, measure=measure) for name in (function, module))
    if not (one and other):
        return "", ""
    more = summarise(ratios(other[0], one[0])).median - 1
    return f"{one[0].summary().median / 1e6:.4f}", f"{more:+.1%}".replace("%", " %")
