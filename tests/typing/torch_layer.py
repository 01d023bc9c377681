"""The layer in PyTorch: what comes in comes out, with its type."""

from __future__ import annotations

from typing import assert_type

import numpy as np
import torch
from torch import Tensor

from grl import DannSchedule
from grl.torch_impl import GRL, GradientReverseFunction
from grl.torch_impl.coefficient import Coefficient


def raw_rule(x: Tensor) -> None:
    y: Tensor = GradientReverseFunction.apply(x, 0.5)  # PyTorch itself leaves `apply` without a type
    assert_type(y, Tensor)


def layer(x: Tensor) -> None:
    reversal = GRL()
    assert_type(reversal(x), Tensor)
    assert_type(reversal(x, 0.5), Tensor)
    assert_type(reversal(x, reverse=False), Tensor)
    assert_type(reversal([x]), list[Tensor])
    assert_type(reversal.forward(x), Tensor)
    assert_type(reversal.forward({"features": x}, coeff=torch.tensor(0.5)), dict[str, Tensor])


def state() -> None:
    reversal = GRL(DannSchedule(100))
    assert_type(reversal.step(), None)
    reversal.coeff = 0.5
    reversal.coeff = torch.tensor(0.5)
    reversal.coeff = DannSchedule(100)
    GRL(coeff=lambda step: 0.1 * step)
    GRL(torch.tensor(0.5))
    GRL(coeff=np.ones(8, np.float32))


def coefficient(reversal: GRL) -> None:
    assert_type(reversal.coeff, Coefficient)


def refused(x: Tensor) -> None:
    # A checker that accepted one of these lines would report its comment as unused.
    GRL("dann")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    GRL()(x, flag=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
