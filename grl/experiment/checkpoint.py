"""The checkpoint of a run: all that it needs to go on, in either backend, as numbers and text that cannot run code.

Two files in the run's directory: `checkpoint-STEP.safetensors`, the trainer's state, and `checkpoint.json`, which says
the rest and the SHA-256 of the first. The JSON is replaced last, so that it speaks of a whole file at every moment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from grl.arrays import Weights
from grl.experiment.config import Config, ConfigError, shown
from grl.experiment.log import read_log
from grl.files import replacing
from grl.weights_file import CheckpointError

__all__ = [
    "NAME",
    "Checkpoint",
    "Done",
    "check_network",
    "check_state",
    "load_checkpoint",
    "remove_checkpoint",
    "save_checkpoint",
    "unfinished",
]

NAME = "checkpoint.json"
_FORMAT = 1


@dataclass(frozen=True)
class Done:
    """How far a run has come.

    Args:
        step: the number of steps done.
        seconds: what they took.
        skipped: how many of them were not applied, since a loss or a weight would not have been finite.
    """

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    The batches are drawn from the seed, and their place in it is the step's number; λ and the learning rates are
    functions of it too. So neither is kept, and a run goes on with the very numbers that it would have drawn.

    Args:
        config: the run's settings.
        done: how far it is.
        data: what the data look like (see `grl.experiment.fingerprint`), to know them again.
        versions: the packages that the trainer's last bits depend on.
        state: what `Trainer.state` returns: weights and optimiser, in PyTorch's names and layouts.
        history: the records so far, as in metrics.jsonl.
        folder: the directory that it was read from, or None.
    """

    config: Config
    done: Done
    data: Mapping[str, Any]
    versions: Mapping[str, str]
    state: Weights
    history: tuple[dict[str, Any], ...]
    folder: str | os.PathLike[str] | None = None

    def is_in(self, folder: str | os.PathLike[str]) -> bool:
        """Whether it was read from this directory."""
        return self.folder is not None and os.path.realpath(self.folder) == os.path.realpath(folder)

    def weights(self) -> Weights:
        """Return the model's part of the state."""
        return {name.removeprefix("model/"): a for name, a in self.state.items() if name.startswith("model/")}

    def digest(self) -> str:
        """Return the SHA-256 of the state's numbers."""
        return sha256(b"".join(sha256(self.state[name].tobytes()).digest() for name in sorted(self.state))).hexdigest()


def save_checkpoint(folder: str | os.PathLike[str], checkpoint: Checkpoint, history_digest: str) -> None:
    """Write a checkpoint; the one before it stays until this one is whole and on the disk.

    Args:
        folder: the run's directory; metrics.jsonl is there, and on the disk.
        checkpoint: the run.
        history_digest: the SHA-256 of metrics.jsonl.

    Raises:
        CheckpointError: the files cannot be written. The checkpoint before this one can be used.
    """
    from safetensors.numpy import save

    config, step = checkpoint.config, checkpoint.done.step
    tensors = save(checkpoint.state, {"format": "pt"})
    content = {
        "format": _FORMAT,
        **asdict(checkpoint.done),
        "config": asdict(config),
        "optimizer": config.optimizer,
        "schedule": {"coeff": config.coeff(step), "rates": config.rates(step)},
        "random": {"generator": "PCG64", "seed": config.seed, "drawn": step * config.batch_size},
        "data": checkpoint.data,
        "versions": checkpoint.versions,
        "tensors_sha256": sha256(tensors).hexdigest(),
        "history": {"records": len(checkpoint.history), "sha256": history_digest},
    }
    try:
        with replacing(_tensors_of(folder, step)) as temporary:
            temporary.write_bytes(tensors)
        with replacing(Path(folder) / NAME) as temporary:
            text = json.dumps({**content, "sha256": _digest(content)}, indent=1, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{_where(folder, step)} cannot be written: {error.strerror}{_before(folder)}") from error
    _remove(folder, but=_tensors_of(folder, step))


def load_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read the checkpoint of a run, and make sure that it is as it was written.

    Args:
        folder: the run's directory.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: there is none, or it is truncated, changed or of another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(folder) / NAME
    content = _read_json(path)
    try:
        if content["format"] != _FORMAT:
            raise CheckpointError(f"{path}: has the format {shown(content['format'])}; expected {_FORMAT}.")
        if content.pop("sha256") != _digest(content):
            raise CheckpointError(f"{path}: was changed after it was written: its SHA-256 is another.")
        config = Config.from_json(content["config"])
        done = Done(*(_number(content[name], kind) for name, kind in _DONE.items()))
        records, history_digest = _number(content["history"]["records"], int), content["history"]["sha256"]
        data, versions, tensors_digest = dict(content["data"]), dict(content["versions"]), content["tensors_sha256"]
    except CheckpointError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        reason = f": {error}" if isinstance(error, ConfigError) else "."
        raise CheckpointError(f"{path}: no checkpoint of a run of this version{reason}") from error
    if done.step > config.steps:
        raise CheckpointError(f"{path}: is at step {done.step} of {config.steps}.")
    tensors = _read(_tensors_of(folder, done.step))
    if sha256(tensors).hexdigest() != tensors_digest:
        raise CheckpointError(
            f"{_tensors_of(folder, done.step)}: truncated, or changed after it was written: {len(tensors)} bytes with"
            " another SHA-256 than checkpoint.json says."
        )
    try:
        state = load(tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{_tensors_of(folder, done.step)}: no safetensors file of NumPy dtypes.") from error
    history = read_log(Path(folder), records, history_digest)
    return Checkpoint(config, done, data, versions, state, tuple(history), folder)


def check_network(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make sure that a checkpoint has the weights of the network in its settings, before that takes memory.

    Args:
        checkpoint: what is to be gone on from.
        shapes: name → shape of all weights.

    Raises:
        CheckpointError: it has not.
    """
    for name, shape in shapes.items():
        found = checkpoint.state.get(f"model/{name}")
        if found is None:
            raise CheckpointError(f"{_of(checkpoint)}: 'model/{name}' is missing.")
        if found.shape != shape:
            raise CheckpointError(f"{_of(checkpoint)}: 'model/{name}' is of shape {found.shape}; expected {shape}.")


def check_state(checkpoint: Checkpoint, expected: Weights, data: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint is of this network, with this optimiser, on these data.

    Args:
        checkpoint: what is to be gone on from.
        expected: a state of the trainer, whatever its values.
        data: what the data look like.

    Raises:
        CheckpointError: it is not.
    """
    name, state = _of(checkpoint), checkpoint.state
    for key in sorted(expected.keys() ^ state.keys()):
        raise CheckpointError(
            f"{name}: {shown(key)} {'is missing' if key in expected else 'has no place in this network'}."
        )
    for key, array in expected.items():
        if (array.shape, array.dtype) != (state[key].shape, state[key].dtype):
            kinds = [f"{kind.dtype} of shape {kind.shape}" for kind in (state[key], array)]
            raise CheckpointError(f"{name}: {key!r} is {kinds[0]}; expected {kinds[1]}.")
    for key, value in data.items():
        if checkpoint.data.get(key) != value:
            found = f"{key} is {value!r}; was {shown(checkpoint.data.get(key))}"
            raise CheckpointError(f"{name}: the data are not those that it was trained on: {found}.")


def unfinished(folder: str | os.PathLike[str]) -> Done | None:
    """Return how far the run in a directory has come, if it has a checkpoint and steps are left."""
    with suppress(CheckpointError, KeyError, TypeError, ValueError):
        content = _read_json(Path(folder) / NAME)
        done = Done(*(_number(content[name], kind) for name, kind in _DONE.items()))
        if done.step < content["config"]["steps"]:
            return done
    return None


def remove_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Remove the checkpoint of a run, if there is one."""
    (Path(folder) / NAME).unlink(missing_ok=True)
    _remove(folder)


_DONE = {"step": int, "seconds": float, "skipped": int}


def _tensors_of(folder: str | os.PathLike[str], step: int) -> Path:
    return Path(folder) / f"checkpoint-{step}.safetensors"


def _remove(folder: str | os.PathLike[str], but: Path | None = None) -> None:
    """Remove older states, and what a process that was killed has left half written."""
    for path in chain(Path(folder).glob("checkpoint-*.safetensors"), Path(folder).glob(".checkpoint*.*.*")):
        if path != but:
            path.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    text = _read(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number of too many digits
        raise CheckpointError(f"{path}: truncated or no JSON.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: no checkpoint of a run.")
    return content


def _number(value: Any, kind: Any) -> Any:
    """An int or float of JSON; neither true nor "1" nor -1."""
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 <= value < 2**63:
        raise TypeError
    return kind(value)


def _digest(content: Mapping[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _of(checkpoint: Checkpoint) -> str:
    return f"checkpoint of step {checkpoint.done.step}"


def _where(folder: str | os.PathLike[str], step: int) -> str:
    return f"{os.fspath(folder)}: the checkpoint of step {step}"


def _before(folder: str | os.PathLike[str]) -> str:
    done = unfinished(folder)
    if done is None:
        return "; there is none before it."
    return f"; that of step {done.step} is whole: grl train --resume {os.fspath(folder)}"
