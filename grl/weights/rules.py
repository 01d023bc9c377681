"""The rule of a module: a rule of your own (`register_rule`), or one of the built-in table."""

from __future__ import annotations

import sys
from threading import Lock
from types import TracebackType

from grl.weights.half import Part, Side
from grl.weights.layer_rules import LAYER_RULES
from grl.weights.rule import Rule

__all__ = ["Registration", "register_rule", "rule_of", "rule_of_kind"]

_lock = Lock()
_registered: tuple[Rule, ...] = ()  # replaced, never changed, so that a reader in another thread sees one state


def register_rule(rule: Rule) -> Registration:
    """Teach `copy_weights`, `compare` and the portable files a layer of your own.

    The rule takes precedence over all earlier ones. It is in force in the whole process, in every thread, from the
    return of this function until it is undone. A call that is running in another thread meanwhile may use either state.

    Args:
        rule: the name of the kind, its classes in both frameworks, and the conversions.

    Returns:
        An object that takes the rule back: call it, or use it as a context manager. Ignore it to keep the rule.

    Example:
        >>> from grl.weights.rule import SAME, table
        >>> scale = Rule("Scale", ("mine.torch.Scale",), ("mine.jax.Scale",), *table(weight=("gain", SAME)))
        >>> with register_rule(scale):
        ...     rule_of_kind("Scale") is scale
        True
        >>> rule_of_kind("Scale") is None
        True
    """
    global _registered
    with _lock:
        _registered = (rule, *_registered)
    return Registration(rule)


class Registration:
    """A registered rule. Calling it, or leaving its `with` block, takes the rule back; doing so twice is harmless.

    Args:
        rule: the registered rule.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._is_active = True

    def __call__(self) -> None:
        """Take the rule back."""
        global _registered
        with _lock:
            if self._is_active:
                remaining = list(_registered)
                remaining.remove(self.rule)
                _registered = tuple(remaining)
            self._is_active = False

    def __enter__(self) -> Rule:
        return self.rule

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self()


def rule_of(module: Part, side: Side) -> Rule | None:
    """Return the rule for a module, or None.

    Registered rules come first, then the rule that the class names in `port_kind`, then the built-in rules.

    Args:
        module: an `nn.Module` or an `nnx.Module`.
        side: its framework.
    """
    for rule in _registered:
        if _is_for(rule, module, side):
            return rule
    kind = getattr(type(module), "port_kind", None)
    if kind is not None:
        return rule_of_kind(kind)
    return next((rule for rule in LAYER_RULES if _is_for(rule, module, side)), None)


def rule_of_kind(kind: str) -> Rule | None:
    """Return the rule of this kind, or None."""
    return next((rule for rule in (*_registered, *LAYER_RULES) if rule.kind == kind), None)


def _is_for(rule: Rule, module: Part, side: Side) -> bool:
    classes = tuple(filter(None, map(_class, rule.torch if side == "torch" else rule.nnx)))
    return isinstance(module, classes) and (side == "torch" or rule.when is None or rule.when(module))


def _class(named: type | str) -> type | None:
    """Return the class of a name. A class whose module is not imported has no objects, so it is not imported here."""
    if not isinstance(named, str):
        return named
    module, _, attribute = named.rpartition(".")
    found: type | None = getattr(sys.modules.get(module), attribute, None)
    return found
