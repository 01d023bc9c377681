"""The arrays of a domain-adaptation task: four real ones that ship inside packages, or the user's own file.

Nothing is downloaded and nothing is random between calls: every task is drawn with one fixed seed of its own, so a
run's seed changes the training and never the data.
"""

from grl.datasets.builtin import TASKS, load_task
from grl.datasets.npz import load_npz
from grl.datasets.task import DataError, Task

__all__ = ["TASKS", "DataError", "Task", "load_npz", "load_task"]
