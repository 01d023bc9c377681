"""`grl check` as a function: a layer of any kind under every transformation of its framework."""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from grl import torch_impl
from grl.parity import Cell, Form, assert_same_bits, check_layer, ulp_distance


def layers_of_any_kind() -> None:
    def reverse(x: Tensor, coeff: float) -> Tensor:
        return torch_impl.gradient_reversal(x, coeff)

    assert_type(check_layer(reverse, backend="torch"), list[Cell])
    assert_type(check_layer(torch_impl.GRL, backend="torch", transformations=["vmap", "jit"]), list[Cell])
    assert_type(check_layer(torch_impl.GradientReverseFunction, backend="torch"), list[Cell])
    assert_type(check_layer("mypackage.layers:ReverseLayer", backend="jax"), list[Cell])
    assert_type(check_layer(Form("mine", "torch", make=torch_impl.GRL), backend="torch"), list[Cell])


def cells(cell: Cell) -> None:
    assert_type(cell.status, str)
    assert_type(cell.reason, str)


def bits(tensor: Tensor, array: NDArray[np.float32]) -> None:
    assert_type(assert_same_bits(tensor, array), None)
    assert_type(ulp_distance(tensor, array), NDArray[Any])
