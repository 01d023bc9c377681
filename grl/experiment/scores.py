"""How well a run ended: its accuracies, and how far apart the domains still are in the features."""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np

from grl.arrays import Array
from grl.datasets import Samples, Task
from grl.experiment.config import Config
from grl.experiment.trainer import BLOCK, Trainer, predictions

__all__ = ["Features", "FeaturesOf", "accuracy", "classify", "domain_accuracy", "proxy_a_distance", "score"]


def score(trainer: Trainer, task: Task, config: Config) -> dict[str, float | None]:
    """Return the scores of a model, as metrics.json has them.

    Args:
        trainer: the model.
        task: the data.
        config: the settings; method and seed are read.
    """
    source_classes, source_domains = classify(trainer, task.x_source)
    _, target_domains = classify(trainer, task.x_target)
    target_accuracy = None
    if task.x_test is not None and task.y_test is not None:
        target_accuracy = accuracy(classify(trainer, task.x_test)[0], task.y_test)
    source, target = FeaturesOf(trainer, task.x_source), FeaturesOf(trainer, task.x_target)
    return {
        "source_accuracy": accuracy(source_classes, task.y_source),
        "target_accuracy": target_accuracy,
        "domain_accuracy": domain_accuracy(source_domains, target_domains) if config.method == "dann" else None,
        "proxy_a_distance": proxy_a_distance(source, target, config.seed),
    }


def classify(trainer: Trainer, x: Array | Samples) -> tuple[Array, Array]:
    """Return classes (N,) and domain logits (N,), with at most a block of inputs, features and logits in memory.

    Args:
        trainer: the model.
        x: inputs (N, ...).
    """
    classes, domain_logits = [], []
    for prediction in predictions(trainer, x):
        classes.append(prediction.class_logits.argmax(1))
        domain_logits.append(prediction.domain_logits)
    return np.concatenate(classes), np.concatenate(domain_logits)


class Features(Protocol):
    """The features of N samples: an array (N, D), or an object that computes the requested rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Array, /) -> Array: ...


class FeaturesOf:
    """The features of inputs, computed when they are requested.

    Args:
        trainer: the model.
        x: inputs (N, ...).
    """

    def __init__(self, trainer: Trainer, x: Array | Samples) -> None:
        self._trainer = trainer
        self._x = x

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, rows: Array) -> Array:
        blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
        return np.concatenate([self._trainer.predict(self._x[block]).features for block in blocks])


def accuracy(classes: Array, labels: Array) -> float:
    """Return the share of samples whose predicted class (N,) is their label (N,)."""
    return float((classes == labels).mean())


def domain_accuracy(source_logits: Array, target_logits: Array) -> float:
    """Return the mean of the domain classifier's accuracies on source and on target; chance is 0.5 for any sizes.

    Args:
        source_logits: (N,), correct where at most 0.
        target_logits: (M,), correct where above 0.
    """
    return float(((source_logits <= 0).mean() + (target_logits > 0).mean()) / 2)


def proxy_a_distance(source: Features, target: Features, seed: int = 0, largest: int = 1000) -> float | None:
    """Return 2·(1 − 2ε), where ε is the error of a linear domain classifier on features that it was not trained on.

    0, or by chance slightly less, means that the domains cannot be told apart; 2 means that they always can. The
    classifier is a logistic regression on standardised features, trained on one half of each domain and tested on the
    other.

    Args:
        source: features (N, D), or an object that computes them from an array of indices.
        target: features (M, D), likewise.
        seed: draws the halves.
        largest: the largest number of samples of each domain; both use the same number.

    Returns:
        The distance, or None for fewer than two samples or for features that are not finite.

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
        warnings.simplefilter("ignore")  # a score does not need full convergence
        classifier.fit(x[trained].astype(np.float64), domains[trained])
    error = 1 - classifier.score(x[~trained].astype(np.float64), domains[~trained])
    return float(2 * (1 - 2 * error))
