"""kdlab: knowledge distillation, taught in notebooks and ready to import.

>>> from kdlab.losses import KDLoss
>>> from kdlab.distill import Distiller, Taps, Term
"""

from importlib.metadata import version

from kdlab.errors import InputError, NonFiniteLossError
from kdlab.shapes import check_shapes

__version__ = version("kdlab")
__all__ = ["InputError", "NonFiniteLossError", "__version__", "check_shapes"]
