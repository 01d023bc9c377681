"""Plant each fault into many random ports, and count how often the instrument names it first.

python -m tests.support.fault_trials --trials 40 --out docs/planted-faults.json
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import strategies as st

from grl.parity import compare
from tests.support.planted_faults import FAULTS, Port
from tests.support.random_networks import Architecture, architectures


@dataclass(frozen=True)
class Trial:
    """One fault in one place.

    Args:
        named: the causes that were named, likeliest first.
        where: the first divergence.
        network: the layers.
    """

    named: tuple[str, ...]
    where: str
    network: str


class _Enough(BaseException):  # no Exception, for Hypothesis to let it through
    pass


def trials(identifier: str, count: int, seed: int = 0) -> list[Trial]:
    """Plant a fault into so many random networks that have a place for it and in which it shows."""
    fault, found = FAULTS[identifier], list[Trial]()

    def run(architecture: Architecture, number: int) -> None:
        port = Port(architecture, np.random.default_rng(number))
        options = fault.plant(port)
        if options is None:
            return
        report = compare(port.torch, port.nnx, port.x, **port.options | options)
        divergence = report.first_divergence
        if divergence is None and not shows(port, bool(options)):
            return  # two dead units, a border of zeros: the faulty port is the same function of these inputs
        causes = () if divergence is None else tuple(str(cause) for cause in divergence.causes)
        where = "" if divergence is None else f"{divergence.kind} of {divergence.where}"
        found.append(Trial(causes, where, str(architecture.layers)))
        if len(found) == count:
            raise _Enough

    each_network(run, fault.inputs, seed)
    return found


def each_network(run: Callable[[Architecture, int], None], inputs: str | None, seed: int) -> None:
    """Call a function with random networks and numbers, until it raises `_Enough`."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=100_000,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(architectures(inputs), st.integers(0, 2**31 - 1))
    def each(architecture: Architecture, number: int) -> None:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
            warnings.simplefilter("error")
            run(architecture, number)

    with suppress(_Enough):
        each()


def shows(port: Port, elsewhere: bool) -> bool:
    """Whether the port with the fault is another function, or has other gradients, than the port without.

    Args:
        port: both.
        elsewhere: whether the fault is in the loss, in the optimiser or in the mode: it counts as one that shows.
    """
    x = jnp.asarray(np.moveaxis(port.x, 1, -1) if len(port.architecture.shape) > 1 else port.x)

    def loss(model: Any) -> Any:
        return jnp.sin(model(x) + 1.0).sum()

    results = [jax.tree.leaves((model(x), nnx.grad(loss)(model))) for model in (port.right, port.nnx)]
    same = len(results[0]) == len(results[1]) and all(
        a.shape == b.shape and np.allclose(a, b, 1e-9, 1e-12) for a, b in zip(*results, strict=True)
    )
    return elsewhere or not same


def main() -> None:
    """Run all of it and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    faults = {}
    for identifier in FAULTS:
        found = trials(identifier, options.trials, options.seed)
        right = sum(trial.named[:1] == (identifier,) for trial in found)
        faults[identifier] = {
            "trials": len(found),
            "named_first": right,
            "missed": [asdict(trial) for trial in found if trial.named[:1] != (identifier,)],
        }
        print(f"{identifier}: {right} of {len(found)}", flush=True)
    data = {
        "command": f"python -m tests.support.fault_trials --trials {options.trials} --seed {options.seed} --out …",
        "versions": {name: metadata.version(name) for name in ("numpy", "torch", "jax", "flax", "optax", "hypothesis")},
        "trials": sum(fault["trials"] for fault in faults.values()),
        "named_first": sum(fault["named_first"] for fault in faults.values()),
        "faults": faults,
    }
    options.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
