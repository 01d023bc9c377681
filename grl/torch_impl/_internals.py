"""Every private name of PyTorch that the layers need, each with a public substitute.

The substitutes cost time (a copy of x, a probe), never a wrong gradient. They take over when PyTorch renames something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

__all__ = [
    "bare_apply",
    "dual_state",
    "is_jit_tracing",
    "is_traced",
    "is_wrapped",
    "transforms_may_be_active",
    "transforms_must_be_active",
    "tree_map",
]


# Whether a `torch.func` transformation is active. Without the private name nobody can tell, and there are two answers.
try:
    from torch._C import _are_functorch_transforms_active as transforms_may_be_active

    transforms_must_be_active = transforms_may_be_active
except ImportError:

    def transforms_may_be_active() -> bool:
        """Return True where a transformation may be active."""
        return True

    def transforms_must_be_active() -> bool:
        """Return True only where a transformation is certainly active."""
        return False


try:
    from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped
except ImportError:

    def is_wrapped(tensor: Tensor) -> bool:
        """Return whether a tensor belongs to a `torch.func` transformation: such a tensor has no storage of its own."""
        try:
            tensor.data_ptr()
        except RuntimeError:
            return True
        return False


class _ProbedDualState:
    @property
    def _current_level(self) -> int:
        try:
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
        except RuntimeError:  # no level is open
            return -1
        return 0


dual_state: Any
try:
    from torch.autograd.forward_ad import _current_level  # noqa: F401  # it changes: read it from its module

    dual_state = forward_ad
except ImportError:
    dual_state = _ProbedDualState()
"""`dual_state._current_level` is 0 or more inside of forward-mode differentiation, and -1 outside."""


try:
    from torch._C import _is_tracing as is_jit_tracing  # half the time of the public function
except ImportError:
    from torch.jit import is_tracing as is_jit_tracing  # type: ignore[attr-defined]


def is_traced(tensor: Tensor) -> bool:
    """Return whether a compiler traces this tensor. The classes are private, so they are known by their names."""
    return any(kind.__name__ in ("FakeTensor", "FunctionalTensor") for kind in type(tensor).__mro__)


try:
    from torch.utils._pytree import tree_map
except ImportError:

    def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:  # type: ignore[misc]  # no `rests`, no `is_leaf`
        """Return tuples, named tuples, lists and dicts, nested, with the function applied to their leaves."""
        if isinstance(tree, dict):
            mapped = {key: tree_map(function, value) for key, value in tree.items()}
            if type(tree) is dict:
                return mapped
            copy = tree.copy()  # an OrderedDict or a defaultdict
            copy.update(mapped)
            return copy
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return type(tree)(*(tree_map(function, value) for value in tree))
        if type(tree) in (tuple, list):
            return type(tree)(tree_map(function, value) for value in tree)
        return function(tree)


def bare_apply(rule: type[Function]) -> Any:
    """Return a Function's `apply` as C++ has it, without the Python wrapper that looks for transformations."""
    return getattr(super(Function, rule), "apply", rule.apply)
