"""Each fault, planted into random places of random networks, is named first: in at least 95 of 100."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("jax")
pytest.importorskip("flax.nnx")
pytest.importorskip("optax")

from tests.support.fault_trials import trials
from tests.support.installed import DEEP
from tests.support.planted_faults import FAULTS

pytestmark = pytest.mark.trains

TRIALS = 20 if DEEP else 1
DOCS = Path(__file__).parents[2] / "docs"
CAUSES = {
    *("padding", "stride", "flatten_order", "transposed_kernel", "epsilon", "batchnorm_momentum", "batchnorm_variance"),
    *("gelu_approximation", "align_corners", "pool_padding_count", "dropout_active", "train_eval_mode"),
    *("reversal_missing", "reversal_doubled", "coefficient", "loss_reduction", "label_smoothing", "weight_decay"),
    *("optimizer_epsilon", "weights_not_copied"),
}


@pytest.mark.parametrize("identifier", FAULTS)
def test_a_planted_fault_is_named_first(identifier: str) -> None:
    found = trials(identifier, TRIALS)
    missed = [trial for trial in found if trial.named[:1] != (identifier,)]
    assert len(found) == TRIALS
    assert len(missed) <= 0.05 * TRIALS, missed


def test_every_cause_is_planted() -> None:
    assert set(FAULTS) == CAUSES


@pytest.mark.parametrize("name", ["planted-faults.json", "planted-faults-unseen.json"])
def test_the_committed_figures_keep_the_promise(name: str) -> None:
    figures = json.loads((DOCS / name).read_text(encoding="utf-8"))
    readme = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    assert f"{figures['named_first']} of {figures['trials']}" in readme
    faults = figures["faults"]
    assert set(faults) == CAUSES
    for identifier, figures in faults.items():
        assert figures["trials"] >= 20, identifier
        assert figures["named_first"] >= 0.95 * figures["trials"], identifier
