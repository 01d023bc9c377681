"""Is a reversal layer right, does it reverse within a model, and do two models agree across frameworks?

Importing this package imports no framework. `compare` and the other names that run models of both frameworks are
imported on first use.

Example:
    `from grl.parity import compare, copy_weights`
"""

from importlib import import_module
from typing import TYPE_CHECKING

from grl.bits import assert_same_bits, ulp_distance
from grl.check.check_layer import check_layer
from grl.check.form import Cell, Form
from grl.check.forms import CheckError
from grl.diagnosis.gradient_report import DomainGradientReport, ParameterGradient, domain_gradient_report
from grl.diagnosis.reversal import Reversal, assert_reverses, measure_reversal
from grl.weights.copying import copy_weights
from grl.weights.pairing import Pair, Pairing, pair
from grl.weights.portable import load_portable, save_portable
from grl.weights.rule import Rule
from grl.weights.rules import register_rule
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

_LAZY = {
    "Cause": "causes.cause",
    "Divergence": "report",
    "ParityReport": "report",
    "Row": "report",
    "TrainingReport": "training_report",
    "assert_parity": "compare",
    "compare": "compare",
    "compare_training": "compare_training",
}
"""Public name → its module in `grl.port`. These need both frameworks."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for package in ("grl.torch_impl", "grl.jax_impl.module"):
        import_module(package)  # raises an ImportError that names the extra to install, if a framework is missing
    value: object = getattr(import_module(f"grl.port.{_LAZY[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
