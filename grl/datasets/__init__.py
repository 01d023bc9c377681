"""The data of a domain-adaptation task: four built-in tasks whose data ship inside packages, or the user's own.

Nothing is downloaded, and nothing varies between calls: every built-in task is drawn with its own fixed seed, so the
seed of a run changes the training and never the data.
"""

from grl.datasets.builtin import TASKS, load_task
from grl.datasets.errors import ON_BAD_DATA, DataError
from grl.datasets.npz import load_npz
from grl.datasets.path import load_path
from grl.datasets.samples import Samples
from grl.datasets.task import Task

__all__ = ["ON_BAD_DATA", "TASKS", "DataError", "Samples", "Task", "load_npz", "load_path", "load_task"]
