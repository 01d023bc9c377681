"""Domain-adaptation experiments, framework-free: the same weights, batches, λ and learning rates for any backend."""

from grl.experiment.backend import build_trainer, versions
from grl.experiment.batching import batches
from grl.experiment.checkpoint import CheckpointError, load_checkpoint
from grl.experiment.config import Config, ConfigError
from grl.experiment.faults import FaultError, StoppedError
from grl.experiment.joining import join
from grl.experiment.processes import Processes, ProcessLostError
from grl.experiment.result import Result, Update, prepare_directory, save
from grl.experiment.run import load_data, report_gradients, train
from grl.experiment.snapshot import Snapshot
from grl.weights_file import WeightsFileError, load_weights

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "FaultError",
    "ProcessLostError",
    "Processes",
    "Result",
    "Snapshot",
    "StoppedError",
    "Update",
    "WeightsFileError",
    "batches",
    "build_trainer",
    "join",
    "load_checkpoint",
    "load_data",
    "load_weights",
    "prepare_directory",
    "report_gradients",
    "save",
    "train",
    "versions",
]
