"""How well a run ended: accuracies, and how far apart the domains still are in the features."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np

from grl.arrays import Array
from grl.datasets import Task
from grl.experiment.config import Config

__all__ = ["Features", "FeaturesOf", "accuracy", "domain_accuracy", "predict", "proxy_a_distance", "score"]

_BLOCK = 500  # samples that are predicted at once: what bounds the memory of scoring


def score(trainer: Any, task: Task, config: Config) -> dict[str, float | None]:
    """Return the scores of a model, as metrics.json has them.

    Args:
        trainer: a `Trainer` of either backend, as it is now.
        task: the data.
        config: the settings; method and seed are read.
    """
    source_classes, source_domains = predict(trainer, task.x_source)
    _, target_domains = predict(trainer, task.x_target)
    target_accuracy = None
    if task.x_test is not None and task.y_test is not None:
        target_accuracy = accuracy(predict(trainer, task.x_test)[0], task.y_test)
    source, target = (FeaturesOf(trainer, x) for x in (task.x_source, task.x_target))
    return {
        "source_accuracy": accuracy(source_classes, task.y_source),
        "target_accuracy": target_accuracy,
        "domain_accuracy": domain_accuracy(source_domains, target_domains) if config.method == "dann" else None,
        "proxy_a_distance": proxy_a_distance(source, target, config.seed),
    }


def predict(trainer: Any, x: Any) -> tuple[Array, Array]:
    """Return classes (N,) and domain logits (N,), with no more than a block of inputs, features and logits at a time.

    Args:
        trainer: a `Trainer` of either backend.
        x: inputs (N, ...), an array or `grl.datasets.Samples`.
    """
    parts = []
    for start in range(0, len(x), _BLOCK):
        _, class_logits, domain_logits = trainer.predict(x[start : start + _BLOCK])
        parts.append((class_logits.argmax(1), domain_logits))
    classes, domains = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return classes, domains


class Features(Protocol):
    """Features of N samples: an array (N, D), or what computes them for those that are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Array, /) -> Array: ...


class FeaturesOf:
    """The features of inputs, computed for those that are asked for.

    Args:
        trainer: a `Trainer` of either backend.
        x: inputs (N, ...), an array or `grl.datasets.Samples`.
    """

    def __init__(self, trainer: Any, x: Any) -> None:
        self._trainer = trainer
        self._x = x

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, rows: Array) -> Array:
        blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
        return np.concatenate([self._trainer.predict(self._x[block])[0] for block in blocks])


def accuracy(classes: Array, labels: Array) -> float:
    """Return the share of samples whose predicted class (N,) is their label (N,)."""
    return float((classes == labels).mean())


def domain_accuracy(source_logits: Array, target_logits: Array) -> float:
    """Return the mean of the domain classifier's accuracies on source and on target: 0.5 is chance, at any sizes.

    Args:
        source_logits: (N,), right where at most 0.
        target_logits: (M,), right where above 0.
    """
    return float(((source_logits <= 0).mean() + (target_logits > 0).mean()) / 2)


def proxy_a_distance(source: Features, target: Features, seed: int = 0, largest: int = 1000) -> float | None:
    """Return 2·(1 − 2ε), with ε the error of a linear domain classifier on features that it was not trained on.

    0 (a little below, by chance, too): the domains cannot be told apart; 2: they always can. The classifier is a
    logistic regression on standardised features, trained on one half of each domain and tested on the other.

    Args:
        source: features (N, D), or what computes those of an array of indices.
        target: features (M, D), or the like.
        seed: draws the halves.
        largest: samples of each domain to use; both use the same number.

    Returns:
        The distance, or None where there is none: fewer than two samples, or features that are not finite.

    Reference:
        Ganin et al. 2016, section 5.1.5, arXiv:1505.07818, after Ben-David et al. 2007.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    size = min(len(source), len(target), largest)
    if size < 2:
        return None
    generator = np.random.default_rng([seed, 3])
    x = np.concatenate([features[generator.permutation(len(features))[:size]] for features in (source, target)])
    if not np.isfinite(x).all():
        return None
    domains = np.repeat([0, 1], size)
    trained = np.tile(np.arange(size) < (size + 1) // 2, 2)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not quite converged is near enough for a score
        classifier.fit(x[trained].astype(np.float64), domains[trained])
    error = 1 - classifier.score(x[~trained].astype(np.float64), domains[~trained])
    return float(2 * (1 - 2 * error))
