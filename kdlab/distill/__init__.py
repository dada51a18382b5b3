"""The joint between two networks: read a layer, compare it, train the student."""

from kdlab.distill.cache import Indexed, TeacherCache, weights_hash
from kdlab.distill.connectors import (
    ConvConnector,
    Each,
    Normalize,
    Paraphraser,
    Pixels,
    Pooled,
    Projector,
    Resize,
    ReviewFusion,
    Translator,
)
from kdlab.distill.distiller import Distiller, Teacher
from kdlab.distill.folding import fold_batchnorm
from kdlab.distill.online import MutualDistiller, SelfDistiller
from kdlab.distill.schedules import Cosine, From, Until, WarmUp
from kdlab.distill.taps import Tap, Taps
from kdlab.distill.term import Term

__all__ = [
    "ConvConnector",
    "Cosine",
    "Distiller",
    "Each",
    "From",
    "Indexed",
    "MutualDistiller",
    "Normalize",
    "Paraphraser",
    "Pixels",
    "Pooled",
    "Projector",
    "Resize",
    "ReviewFusion",
    "SelfDistiller",
    "Tap",
    "Taps",
    "Teacher",
    "TeacherCache",
    "Term",
    "Translator",
    "Until",
    "WarmUp",
    "fold_batchnorm",
    "weights_hash",
]
