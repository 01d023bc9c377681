"""The packages that single commands need, and the extra of `grl` that installs them.

The command line itself needs typer and rich alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

__all__ = ["COMMAND_LINE", "TRAINING", "explain_missing", "missing", "require_training"]

COMMAND_LINE = {"typer": "typer", "rich": "rich"}
"""The packages of the extra `cli`, by the name of the module."""

TRAINING = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "safetensors": "safetensors"}
"""The packages that every training needs, from the extra `train`. A built-in task may need mlxtend as well."""


def missing(user: str, packages: Mapping[str, str], extra: str) -> str | None:
    """Return a sentence that names the packages that are not installed, and their extra; None if all are.

    Args:
        user: the command that needs them.
        packages: package names by module names.
        extra: the extra that installs them.

    Example:
        >>> missing("grl train", {"sys": "sys"}, "train") is None
        True
        >>> missing("grl train", {"no_such_module": "no-such-package"}, "train")
        'grl train needs no-such-package: pip install "grl[train]"'
    """
    absent = [package for module, package in packages.items() if find_spec(module) is None]
    return f'{user} needs {", ".join(absent)}: pip install "grl[{extra}]"' if absent else None


def require_training(command: str) -> None:
    """Check that a command finds the packages of `TRAINING`.

    Raises:
        ImportError: one is not installed; the message names it and the extra.
    """
    sentence = missing(command, TRAINING, "train")
    if sentence is not None:
        raise ImportError(sentence)


def explain_missing(error: ImportError) -> str | None:
    """Return the sentence for an import that failed; None if the package belongs to no extra."""
    if "pip install" in str(error):
        return str(error)
    module = (error.name or "").partition(".")[0]
    return missing("this command", {module: TRAINING[module]}, "train") if module in TRAINING else None
