"""The command line: `grl train`, `grl demo`, `grl check`, `grl port-check`.

This module is all that the entry point imports before it knows that typer and rich are installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["main"]

# What the extra `train` brings, by the name of the module.
_NEEDED = {name: name for name in ("typer", "rich", "mlxtend", "matplotlib", "safetensors")} | {
    "sklearn": "scikit-learn"
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after `grl`; by default those of the process.

    Returns:
        The exit status: 0; 1 if a check found something wrong; 2 for bad use, after one sentence on stderr; 130 after
        Ctrl-C.
    """
    try:
        missing = [name for module, name in _NEEDED.items() if find_spec(module) is None]
        if missing:
            return _refuse(f'the command line needs {", ".join(missing)}: pip install "grl[train]"')
        return _run(arguments)
    except KeyboardInterrupt:
        return _refuse("interrupted; no file was left half written.", status=130)


def _run(arguments: Sequence[str] | None) -> int:
    from grl.cli.app import REFUSALS, app, explain

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that has no λ shows a question mark, not a traceback
    try:
        status = app(None if arguments is None else list(arguments), prog_name="grl", standalone_mode=False)
    except REFUSALS as error:
        return _refuse(explain(error))
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        return _refuse(str(error))
    except Exception as error:
        # What typer raises for a wrong option; the class has moved between its versions.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        command = "grl" if context is None else context.command_path
        message = re.sub("^Invalid value for '(.*?)'", r"\1", error.format_message())
        sentence = message.rstrip(".")
        return _refuse(f"{sentence}{' Try' if sentence.endswith('?') else '; try'}: {command} --help")
    if status == 130:  # how typer returns Ctrl-C
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _refuse(message: str, status: int = 2) -> int:
    print("grl:", " ".join(message.split()), file=sys.stderr)
    return status
