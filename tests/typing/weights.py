"""Weights carried from one framework to the other."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from flax import nnx
from torch import nn

from grl.parity import Pair, Pairing, Rule, copy_weights, load_portable, pair, register_rule, save_portable


def between_models(torch_model: nn.Module, nnx_model: nnx.Module) -> None:
    assert_type(copy_weights(torch_model, nnx_model), Pairing)
    assert_type(copy_weights(nnx_model, torch_model, names={"fc": "head"}, strict=False), Pairing)
    assert_type(copy_weights(torch_model, nnx_model, flatten={"fc": (64, 7, 7)}), Pairing)
    pairing = pair(torch_model, nnx_model)
    assert_type(pairing, Pairing)
    assert_type(pairing.pairs, tuple[Pair, ...])


def files(torch_model: nn.Module, nnx_model: nnx.Module) -> None:
    assert_type(save_portable(torch_model, "model.safetensors"), None)
    assert_type(load_portable(nnx_model, Path("model.safetensors"), names={"fc": "head"}), None)


def rules(rule: Rule) -> None:
    register_rule(rule)
