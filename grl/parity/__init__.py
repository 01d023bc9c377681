"""Is a layer right, does it reverse in a model, and is a model the same in both frameworks?

Importing it imports no framework.
"""

from grl.parity.check import check_layer
from grl.parity.forms import CheckError
from grl.parity.gradient_report import DomainGradientReport, ParameterGradient, domain_gradient_report
from grl.parity.matrix import Cell, Form
from grl.parity.port.copying import copy_weights
from grl.parity.port.pairing import Pair, Pairing, pair
from grl.parity.port.rules import Rule, register_rule
from grl.parity.port.slot import PortError
from grl.parity.reversal import Reversal, assert_reverses, measure_reversal

__all__ = [
    "Cell",
    "CheckError",
    "DomainGradientReport",
    "Form",
    "Pair",
    "Pairing",
    "ParameterGradient",
    "PortError",
    "Reversal",
    "Rule",
    "assert_reverses",
    "check_layer",
    "copy_weights",
    "domain_gradient_report",
    "measure_reversal",
    "pair",
    "register_rule",
]
