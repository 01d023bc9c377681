"""The command line: `grl train`, `grl demo`, `grl check`, `grl port-check`.

The entry point imports only this module before it knows that typer and rich are installed.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence

from grl.cli.extras import COMMAND_LINE, explain_missing, missing
from grl.cli.signals import die_at_second_interrupt
from grl.experiment.config import ConfigError
from grl.experiment.processes import ProcessLostError, RefusedByAllError, launched

__all__ = ["main"]

# The words of PyTorch and XLA for it: neither has an exception class of its own for every device.
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|RESOURCE_EXHAUSTED", re.IGNORECASE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after `grl`; by default those of the process.

    Returns:
        The exit status. 0: success. 1: a check found an error, or another process of the run is lost. 2: wrong use, or
        a file that cannot be written; stderr has one sentence. 3: a loss was not finite. 130: Ctrl-C. 143: SIGTERM,
        once the run is saved. One of several processes does not return: it ends here.
    """
    try:
        status = _guard(arguments)
    except BaseException as error:
        if _place()[1] == 1:
            raise
        traceback.print_exception(error)
        status = 1
    if _place()[1] > 1:
        # Python's own shutdown would have the frameworks wait for processes that are gone, and PyTorch may abort a
        # process that has finished (2.13: "terminate called without an active exception").
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _guard(arguments: Sequence[str] | None) -> int:
    try:
        sentence = missing("the command line", COMMAND_LINE, "cli")
        if sentence is not None:
            return _refuse(sentence)
        with die_at_second_interrupt():
            return _run(arguments)
    except KeyboardInterrupt:  # a terminal sends it to all processes
        return _refuse("interrupted; no file was left half written.", status=130, by_all=True)


def _run(arguments: Sequence[str] | None) -> int:
    from grl.cli.app import REFUSALS, app, explain
    from grl.experiment.faults import FaultError, StoppedError

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without λ shows a question mark instead of a traceback
    try:
        status = app(None if arguments is None else list(arguments), prog_name="grl", standalone_mode=False)
    except REFUSALS as error:
        return _refuse(explain(error), by_all=isinstance(error, RefusedByAllError))
    except ProcessLostError as error:  # a RuntimeError too
        return _refuse(str(error), status=1)
    except FaultError as error:
        return _refuse(str(error), status=3, by_all=True)
    except StoppedError as error:
        return _refuse(str(error), status=143, by_all=True)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        return _refuse("not enough memory; grl train needs less with a smaller --batch-size.")
    except ImportError as error:
        sentence = explain_missing(error)
        if sentence is None:
            raise
        return _refuse(sentence)
    except Exception as error:
        # Typer's error for a wrong option; its class has moved between versions.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        command = "grl" if context is None else context.command_path
        message = re.sub("^Invalid value for '(.*?)'", r"\1", error.format_message())
        sentence = message.rstrip(".")
        return _refuse(f"{sentence}{' Try' if sentence.endswith('?') else '; try'}: {command} --help")
    if status == 130:  # typer returns it for Ctrl-C
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _refuse(message: str, status: int = 2, by_all: bool = False) -> int:
    """Print one sentence. If all of several processes refuse, only the first prints; else each names its place."""
    index, count = _place()
    sentence = " ".join(message.split())
    if count > 1 and not by_all:
        place = f"process {index} of {count}: "
        sentence = f"{place}{sentence.removeprefix(place)}"
    if index == 0 or not by_all:
        sys.stderr.write(f"grl: {sentence}\n")  # in one piece: a second Ctrl-C must not cut it
    return status


def _place() -> tuple[int, int]:
    """Return this process's index, and the number of processes."""
    try:
        return launched()[1:]
    except ConfigError:  # `join` reports it when the run begins
        return 0, 1
