"""`step`: a whole DANN step on images, by network, framework and mode, with the layer and with an identity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from benchmarks.form import Backend, WrongResultError
from benchmarks.record import Row, explain
from benchmarks.settings import CLASSES, COEFF, Settings, Tell
from benchmarks.timing import Call, HostClock, interleave
from grl.experiment import batches, build_trainer, load_data
from grl.experiment.config import Config

__all__ = ["LAYERS", "run"]

LAYERS = ("gradient_reversal", "identity")
_TASK = "mnist-mnistm"
_SCANNED = 10  # steps in one `lax.scan`
_RESNET_RATE = 0.01


class _Case(NamedTuple):
    network: str
    framework: str
    mode: str
    layer: str


def run(found: Sequence[Backend], settings: Settings, tell: Tell) -> list[Row]:
    """Time the training step of each network in all modes, those of one network in the same rounds.

    Each call is `Trainer.run`: batches go to the device, losses come back, so that a call ends when its work does.
    """
    networks = [_TASK] if settings.resnet is None else [_TASK, settings.resnet.name]
    return [row for network in networks for row in _run(network, found, settings, tell)]


def _run(network: str, found: Sequence[Backend], settings: Settings, tell: Tell) -> list[Row]:
    modes = [mode.split() for mode in settings.step_modes]
    cases = [_Case(network, framework, mode, layer) for framework, mode in modes for layer in LAYERS]
    cases = [case for case in cases if case.framework in {backend.name for backend in found}]
    rows: dict[_Case, Row] = {}
    calls: dict[_Case, Call] = {}
    first_losses: dict[_Case, Any] = {}
    for done, case in enumerate(cases):
        tell(done, len(cases) + 1, ", ".join(case))
        rows[case] = _row(case)
        try:
            calls[case], first_losses[case] = _prepare(settings, case)
            _check(case, first_losses, 1e-3 if settings.on_gpu else 1e-5)
        except Exception as error:
            calls.pop(case, None)
            rows[case].failure = explain(error)
    tell(len(cases), len(cases) + 1, f"{network}, all of them in turn")
    samples, failures = interleave(
        calls, rounds=settings.step_rounds, repeat=1, beside=lambda case: (case.framework, case.mode)
    )
    for case, values in samples.items():
        rows[case].samples = [value / _steps(case) for value in values]
    for case, failure in failures.items():
        rows[case].failure = explain(failure)
    return list(rows.values())


def _row(case: _Case) -> Row:
    name, is_floor = f"{case.layer}, {case.mode}", case.layer == "identity"
    floor = None if is_floor else (f"identity, {case.mode}", "step")
    return Row(
        "step",
        case.framework,
        name,
        "floor" if is_floor else "ours",
        "step",
        "ns",
        {"network": case.network},
        [],
        floor,
    )


def _steps(case: _Case) -> int:
    return _SCANNED if case.mode == "scan" else 1


@contextmanager
def _in_place(case: _Case) -> Iterator[None]:
    """Make `DANN` use the layer, or an identity in its place."""
    if case.layer != "identity":
        yield
        return
    with patch.object(import_module(f"grl.{case.framework}_impl.dann"), "gradient_reversal", lambda x, coeff: x):
        yield


def _prepare(settings: Settings, case: _Case) -> tuple[Call, Any]:
    """Return the call of a fresh trainer, and the losses of its first two steps."""
    trainer, stream, rates = (_small if case.network == _TASK else _large)(settings, case.framework)
    if case.mode == "compiled":
        trainer.model.compile()
    steps = _steps(case)
    schedules = np.full(steps, COEFF), np.array([rates] * steps)
    ring = [(*(np.stack(arrays) for arrays in zip(*islice(stream, steps), strict=True)), *schedules) for _ in range(4)]

    def step(*arguments: Any) -> Any:
        with _in_place(case):  # eager PyTorch looks the name up at each call; the cost of entering is negligible
            return trainer.run(*arguments)

    losses = [np.stack(step(*arguments)[:2]) for arguments in ring[:2]]
    return Call(step, ring, HostClock()), np.concatenate(losses, 1)[:, :2]


def _small(settings: Settings, framework: str) -> tuple[Any, Iterator[tuple[Any, ...]], tuple[float, float]]:
    """The network of the experiments: its trainer, its batches, its learning rates."""
    config = Config.recommended(_TASK, backend=framework, method="dann", device="gpu" if settings.on_gpu else "cpu")
    task = load_data(config)
    return build_trainer(task, config), batches(task, config), config.rates(0)


def _large(settings: Settings, framework: str) -> tuple[Any, Iterator[tuple[Any, ...]], tuple[float, float]]:
    """The ResNet, on images of noise: their content does not affect the time."""
    size = settings.resnet
    assert size is not None
    trainer = import_module(f"benchmarks.resnet_{framework}").Trainer(size, settings.on_gpu)
    generator = np.random.default_rng(0)
    shape = (size.batch, 3, size.side, size.side)

    def stream() -> Iterator[tuple[Any, ...]]:
        while True:
            source, target = (generator.standard_normal(shape, np.float32) for _ in range(2))
            yield source, generator.integers(CLASSES, size=size.batch), target

    return trainer, stream(), (_RESNET_RATE, _RESNET_RATE)


def _check(case: _Case, first_losses: dict[_Case, Any], rounding: float) -> None:
    """Raise if the first step's losses differ from the identity's, or if the second's equal them: nothing was reversed.

    Frameworks on a GPU choose between convolutions that round differently, hence `rounding`, the relative tolerance.
    """
    mine = first_losses[case]
    if not np.isfinite(mine).all():
        raise WrongResultError("losses that are not finite")
    theirs = first_losses.get(case._replace(layer=LAYERS[0]))
    if case.layer != "identity" or theirs is None:
        return
    if not np.allclose(mine[:, 0], theirs[:, 0], rtol=rounding):
        raise WrongResultError(f"the first step's losses: {theirs[:, 0]} with the layer, {mine[:, 0]} without")
    if np.allclose(mine[:, 1], theirs[:, 1], rtol=10 * rounding):
        raise WrongResultError("the second step's losses are the same with the layer and without: nothing was reversed")
