"""Is a layer right, does it reverse in a model, and is a model the same in both frameworks?

Importing it imports no framework. What runs models of both, `compare` and its like, is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from grl.parity.bits import assert_same_bits, ulp_distance
from grl.parity.check import check_layer
from grl.parity.forms import CheckError
from grl.parity.gradient_report import DomainGradientReport, ParameterGradient, domain_gradient_report
from grl.parity.matrix import Cell, Form
from grl.parity.port.copying import copy_weights
from grl.parity.port.pairing import Pair, Pairing, pair
from grl.parity.port.portable import load_portable, save_portable
from grl.parity.port.rules import Rule, register_rule
from grl.parity.port.slot import PortError
from grl.parity.reversal import Reversal, assert_reverses, measure_reversal

if TYPE_CHECKING:
    from grl.parity.port.causes.cause import Cause
    from grl.parity.port.compare import assert_parity, compare
    from grl.parity.port.report import Divergence, ParityReport, Row
    from grl.parity.port.training import compare_training
    from grl.parity.port.training_report import TrainingReport

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
    "compare_training": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for needed in ("grl.torch_impl", "grl.jax_impl.module"):
        import_module(needed)  # says what to install where a framework is missing
    return getattr(import_module(f"grl.parity.port.{_PLACES[name]}"), name)
