"""Is a layer right? The matrix of layers and transformations. Importing it imports no framework."""

from grl.parity.check import check_layer
from grl.parity.forms import CheckError
from grl.parity.matrix import Cell, Form

__all__ = ["Cell", "CheckError", "Form", "check_layer"]
