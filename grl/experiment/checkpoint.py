"""The checkpoint of a run: all that either backend needs to continue it, as numbers and text that cannot run code.

A checkpoint is two files in the run's directory. `checkpoint-STEP.safetensors` holds the trainer's state.
`checkpoint.json` holds the rest and the SHA-256 of the first file. The JSON file is replaced last, so it always names a
complete file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from grl.arrays import Weights
from grl.errors import GrlError
from grl.experiment.config import Config, ConfigError, shown
from grl.experiment.files import CHECKPOINT, HISTORY, STATE_PATTERN, state_name
from grl.experiment.record import RECORD_KEYS, Record, is_record
from grl.files import replacing

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Done",
    "content_digest",
    "load_checkpoint",
    "remove_checkpoint",
    "save_checkpoint",
    "unfinished",
]

_FORMAT = 1

Folder = str | os.PathLike[str]


class CheckpointError(GrlError, ValueError):
    """A run's checkpoint cannot be read or written, or does not fit the run. The message is one sentence."""


@dataclass(frozen=True)
class Done:
    """How far a run has come.

    Args:
        step: the number of steps done.
        seconds: the time that they took.
        skipped: the number of steps that were not applied because a loss or a weight would not have been finite.
    """

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    The seed and the step's number determine the next batch, λ and the learning rates. A checkpoint therefore stores
    none of them, and a resumed run draws exactly the numbers that the interrupted run would have drawn.

    Args:
        config: the run's settings.
        done: how far the run has come.
        data: a description of the data (see `grl.experiment.batching.fingerprint`), to recognise them.
        versions: the versions of the packages that the trainer's last bits depend on.
        state: the result of `Trainer.state`: weights and optimiser, in PyTorch's names and layouts.
        history: the records so far, as in metrics.jsonl.
        folder: the directory that the checkpoint was read from, or None.
    """

    config: Config
    done: Done
    data: Mapping[str, object]
    versions: Mapping[str, str]
    state: Weights
    history: tuple[Record, ...]
    folder: Folder | None = None

    def is_in(self, folder: Folder) -> bool:
        """Return whether the checkpoint was read from this directory."""
        return self.folder is not None and os.path.realpath(self.folder) == os.path.realpath(folder)

    def weights(self) -> Weights:
        """Return the model's part of the state."""
        return {name.removeprefix("model/"): array for name, array in self.state.items() if name.startswith("model/")}

    def digest(self) -> str:
        """Return the SHA-256 of the state's numbers."""
        digests = [sha256(self.state[name].tobytes()).digest() for name in sorted(self.state)]
        return sha256(b"".join(digests)).hexdigest()


def save_checkpoint(folder: Folder, checkpoint: Checkpoint, history_digest: str) -> None:
    """Write a checkpoint. The previous one stays until the new one is complete and on the disk.

    Args:
        folder: the run's directory, with metrics.jsonl already on the disk.
        checkpoint: the run.
        history_digest: the SHA-256 of metrics.jsonl.

    Raises:
        CheckpointError: the files cannot be written. The previous checkpoint can still be used.
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
    state_path = Path(folder) / state_name(step)
    try:
        with replacing(state_path) as temporary:
            temporary.write_bytes(tensors)
        with replacing(Path(folder) / CHECKPOINT) as temporary:
            text = json.dumps({**content, "sha256": content_digest(content)}, indent=1, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        reason = f"{os.fspath(folder)}: the checkpoint of step {step} cannot be written: {error.strerror}"
        raise CheckpointError(f"{reason}; {_previous(folder)}") from error
    _remove_states(folder, keep=state_path)


def content_digest(content: Mapping[str, object]) -> str:
    """Return the SHA-256 that checkpoint.json holds of everything else in it."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_checkpoint(folder: Folder) -> Checkpoint:
    """Read the checkpoint of a run, and check that it is as it was written.

    Args:
        folder: the run's directory.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: there is none, or it is truncated, changed or of another version.
    """
    path = Path(folder) / CHECKPOINT
    content = _read_json(path)
    try:
        if content["format"] != _FORMAT:
            raise CheckpointError(f"{path}: has the format {shown(content['format'])}; expected {_FORMAT}.")
        if content.pop("sha256") != content_digest(content):
            raise CheckpointError(f"{path}: was changed after it was written: its SHA-256 differs.")
        config, done = Config.from_json(content["config"]), _read_done(content)
        records, history_digest = _integer(content["history"]["records"]), content["history"]["sha256"]
        data, versions, tensors_digest = dict(content["data"]), dict(content["versions"]), content["tensors_sha256"]
    except CheckpointError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        reason = f": {error}" if isinstance(error, ConfigError) else "."
        raise CheckpointError(f"{path}: no checkpoint of a run of this version{reason}") from error
    if done.step > config.steps:
        raise CheckpointError(f"{path}: is at step {done.step} of {config.steps}.")
    state = _read_state(Path(folder) / state_name(done.step), tensors_digest)
    history = _read_history(Path(folder) / HISTORY, records, history_digest)
    return Checkpoint(config, done, data, versions, state, tuple(history), folder)


def unfinished(folder: Folder) -> Done | None:
    """Return how far the run in a directory has come, if it has a checkpoint and steps remain."""
    with suppress(CheckpointError, KeyError, TypeError, ValueError):
        content = _read_json(Path(folder) / CHECKPOINT)
        done = _read_done(content)
        if done.step < content["config"]["steps"]:
            return done
    return None


def remove_checkpoint(folder: Folder) -> None:
    """Remove the checkpoint of a run, if there is one."""
    (Path(folder) / CHECKPOINT).unlink(missing_ok=True)
    _remove_states(folder)


def _remove_states(folder: Folder, keep: Path | None = None) -> None:
    """Remove older states, and files that a killed process has left half written."""
    for path in chain(Path(folder).glob(STATE_PATTERN), Path(folder).glob(".checkpoint*.*.*")):
        if path != keep:
            path.unlink(missing_ok=True)


def _previous(folder: Folder) -> str:
    """Say in a message which checkpoint can still be used."""
    done = unfinished(folder)
    if done is None:
        return "there is no earlier one."
    return f"that of step {done.step} is complete: grl train --resume {os.fspath(folder)}"


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


def _read_done(content: Mapping[str, object]) -> Done:
    return Done(_integer(content["step"]), _number(content["seconds"]), _integer(content["skipped"]))


def _integer(value: object) -> int:
    """Return an integer of JSON that is not negative; refuse true, "1" and 1.0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise TypeError
    return value


def _number(value: object) -> float:
    """Return a number of JSON that is not negative."""
    if isinstance(value, float) and 0 <= value < 2**63:
        return value
    return float(_integer(value))


def _read_state(path: Path, digest: str) -> Weights:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    tensors = _read(path)
    if sha256(tensors).hexdigest() != digest:
        size = f"its {len(tensors)} bytes have another SHA-256 than {CHECKPOINT} says"
        raise CheckpointError(f"{path}: truncated, or changed after it was written: {size}.")
    try:
        return load(tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no safetensors file of NumPy dtypes.") from error


def _read_history(path: Path, count: int, digest: str) -> list[Record]:
    """Return the first `count` records of a metrics.jsonl; the run logged the others after the checkpoint."""
    try:
        with open(path, "rb") as file:
            lines = [line for _, line in zip(range(count), file, strict=False)]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    if len(lines) < count:
        raise CheckpointError(f"{path}: has {len(lines)} lines; the checkpoint was written after {count}.")
    if sha256(b"".join(lines)).hexdigest() != digest:
        raise CheckpointError(f"{path}: was changed after it was written: its SHA-256 differs.")
    return list(_parsed(path, lines))


def _parsed(path: Path, lines: Iterable[bytes]) -> Iterable[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: a line is no JSON.") from error
        if not is_record(record):
            raise CheckpointError(f"{path}: each line must hold {', '.join(RECORD_KEYS)}, and nothing else.")
        yield record
