"""Is a layer right? The matrix of layers and transformations, and whether a layer reverses in a model.

Importing it imports no framework.
"""

from grl.parity.check import check_layer
from grl.parity.forms import CheckError
from grl.parity.gradient_report import DomainGradientReport, ParameterGradient, domain_gradient_report
from grl.parity.matrix import Cell, Form
from grl.parity.reversal import Reversal, assert_reverses, measure_reversal

__all__ = [
    "Cell",
    "CheckError",
    "DomainGradientReport",
    "Form",
    "ParameterGradient",
    "Reversal",
    "assert_reverses",
    "check_layer",
    "domain_gradient_report",
    "measure_reversal",
]
