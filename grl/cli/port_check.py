"""`grl port-check`: a PyTorch model and its port to nnx, compared layer by layer."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from grl.parity import PortError

__all__ = ["port_check"]

_TARGETS = "targets"


def port_check(
    torch_factory: Annotated[
        str, typer.Argument(metavar="PATH.py:TORCH", help="A function without arguments that makes the nn.Module.")
    ],
    nnx_factory: Annotated[
        str, typer.Argument(metavar="PATH.py:NNX", help="A function without arguments that makes the nnx.Module.")
    ],
    inputs: Annotated[
        str,
        typer.Option(
            metavar="FILE.npz",
            help="The arguments of the models, in their order; an array named targets goes to the loss.",
        ),
    ],
    loss: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="PATH.py:TORCH PATH.py:JAX", help="Two loss functions of (output, targets), or of the output alone."
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(metavar="NCHW|NHWC", help="The layout of images; by default guessed from the first convolution."),
    ] = None,
    train: Annotated[
        bool | None,
        typer.Option("--train/--eval", help="The mode of both models; by default the mode that each is made in."),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy/--no-copy", help="Whether to copy PyTorch's weights to the nnx model first.")
    ] = True,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="CAUSE", help="A cause to accept, such as batchnorm_variance; repeatable."),
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the report to this file.")
    ] = None,
    png_file: Annotated[
        str | None, typer.Option("--png", metavar="FILE", help="Draw the differences by depth in this file.")
    ] = None,
) -> int:
    """Compare a PyTorch model with its port to nnx, and name the first place where they diverge, and the cause.

    Both run forward and backward on the same arrays, once in their own precision and once in float64, where a
    difference is not rounding.

    Exit status: 0 if they agree, 1 if they do not, 2 for wrong use.

    [dim]grl port-check models.py:make_torch models.py:make_nnx --inputs batch.npz --eval[/dim]
    """
    for option, path in (("--json", json_file), ("--png", png_file)):
        if path is not None and (not path or Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK)):
            raise PortError(f"{option}: got {path!r}; expected a file in a folder that can be written.")
    arguments, targets = _read(inputs)
    losses = None if loss is None else tuple(_load(name, "--loss") for name in loss)
    from grl.parity import compare, copy_weights

    ours, theirs = (_make(name) for name in (torch_factory, nnx_factory))
    try:
        if copy:
            copy_weights(ours, theirs)
    except PortError:
        raise
    except Exception as error:  # the factory may return anything, such as a model of an unknown kind
        raise PortError(f"the weights cannot be carried across: {_reason(error)}.") from error
    try:
        report = compare(
            ours, theirs, arguments, loss=losses, targets=targets, layout=layout, train=train, ignore=ignore or ()
        )
    except Exception as error:  # the user's models may raise anything
        raise PortError(f"the models cannot be compared: {_reason(error)}.") from error
    report.show()
    if json_file is not None:
        report.to_json(json_file)
    if png_file is not None:
        report.plot(png_file)
    return int(not report.agrees)


def _read(path: str) -> tuple[tuple[np.ndarray[Any, Any], ...], np.ndarray[Any, Any] | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise PortError(f"--inputs: no such file: {path}.") from None
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds for a damaged file
        raise PortError(f"--inputs: {path} cannot be read; expected an .npz of numbers.") from error
    targets = arrays.pop(_TARGETS, None)
    if not arrays:
        raise PortError(f"--inputs: {path} holds no array but targets; expected one array for each argument.")
    return tuple(arrays.values()), targets


def _make(name: str) -> Any:
    factory = _load(name, "factory")
    try:
        return factory()
    except Exception as error:
        raise PortError(f"{name} raises {_reason(error)}.") from error


def _load(name: str, what: str) -> Any:
    """Run a Python file and return the function of this name in it."""
    path, colon, attribute = name.rpartition(":")
    if not (path and colon and attribute):
        raise PortError(f"{what}: got {name!r}; expected path.py:name.")
    if not Path(path).is_file():
        raise PortError(f"{what}: no such file: {path}.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise PortError(f"{what}: {path} is no Python file; expected path.py:name.")
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python path.py` does, so that it can import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PortError(f"{path} raises {_reason(error)}.") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise PortError(f"{what}: {path} has no function {attribute}.")
    return function


def _reason(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}".rstrip(".: ")
