"""The joint between two networks: read a layer, compare it, train the student."""

from kdlab.distill.cache import TeacherCache, weights_hash
from kdlab.distill.distiller import Distiller, Term
from kdlab.distill.taps import Taps

__all__ = ["Distiller", "Taps", "TeacherCache", "Term", "weights_hash"]
