"""Distillation losses: ``Loss(hyper-parameters)(student, teacher[, target]) -> scalar``, pure tensor mathematics.

What compares in float32 under autocast does so in its gradient, too, if ``backward()`` is called outside of autocast,
as PyTorch recommends and :func:`kdlab.training.fit` does; inside, PyTorch's own products go back to half precision.
"""

from kdlab.losses.contrastive import CRDLoss
from kdlab.losses.dehazing import KTLoss, LabLoss, LaplacianLoss, srgb_to_lab
from kdlab.losses.dense import CWDLoss, MGDLoss, PixelCrossEntropy
from kdlab.losses.feature import ABLoss, ATLoss, FTLoss, HintLoss, OFDLoss, ReviewKDLoss, VIDLoss, ofd_margin
from kdlab.losses.relation import FSPLoss, PKTLoss, RKDLoss, SPLoss
from kdlab.losses.response import DISTLoss, DKDLoss, DMLLoss, KDLoss, LabelledCrossEntropy
from kdlab.losses.restoration import CKTLoss, HCRLoss, SCRLoss

__all__ = [
    "ABLoss",
    "ATLoss",
    "CKTLoss",
    "CRDLoss",
    "CWDLoss",
    "DISTLoss",
    "DKDLoss",
    "DMLLoss",
    "FSPLoss",
    "FTLoss",
    "HCRLoss",
    "HintLoss",
    "KDLoss",
    "KTLoss",
    "LabLoss",
    "LabelledCrossEntropy",
    "LaplacianLoss",
    "MGDLoss",
    "OFDLoss",
    "PKTLoss",
    "PixelCrossEntropy",
    "RKDLoss",
    "ReviewKDLoss",
    "SCRLoss",
    "SPLoss",
    "VIDLoss",
    "ofd_margin",
    "srgb_to_lab",
]
