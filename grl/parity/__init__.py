"""Is a layer right, does it reverse in a model, and is a model the same in both frameworks?

Importing it imports no framework. What runs models of both, `compare` and its like, is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from grl.bits import assert_same_bits, ulp_distance
from grl.check.check_layer import check_layer
from grl.check.forms import CheckError
from grl.check.matrix import Cell, Form
from grl.diagnosis.gradient_report import DomainGradientReport, ParameterGradient, domain_gradient_report
from grl.diagnosis.reversal import Reversal, assert_reverses, measure_reversal
from grl.weights.copying import copy_weights
from grl.weights.pairing import Pair, Pairing, pair
from grl.weights.portable import load_portable, save_portable
from grl.weights.rules import Rule, register_rule
from grl.weights.slot import PortError

if TYPE_CHECKING:
    from grl.port.causes.cause import Cause
    from grl.port.compare import assert_parity, compare
    from grl.port.compare_training import compare_training
    from grl.port.report import Divergence, ParityReport, Row
    from grl.port.training_report import TrainingReport

__all__ = [
    "Cause",
    "Cell",
    "CheckError",
    "Divergence",
    "DomainGradientReport",
    "Form",
    "Pair",
    "Pairing",
    "ParameterGradient",
    "ParityReport",
    "PortError",
    "Reversal",
    "Row",
    "Rule",
    "TrainingReport",
    "assert_parity",
    "assert_reverses",
    "assert_same_bits",
    "check_layer",
    "compare",
    "compare_training",
    "copy_weights",
    "domain_gradient_report",
    "load_portable",
    "measure_reversal",
    "pair",
    "register_rule",
    "save_portable",
    "ulp_distance",
]

_PLACES = {
    **dict.fromkeys(("assert_parity", "compare"), "compare"),
    **dict.fromkeys(("Divergence", "ParityReport", "Row"), "report"),
    "Cause": "causes.cause",
    "TrainingReport": "training_report",
    "compare_training": "compare_training",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for needed in ("grl.torch_impl", "grl.jax_impl.module"):
        import_module(needed)  # says what to install where a framework is missing
    return getattr(import_module(f"grl.port.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
