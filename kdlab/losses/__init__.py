"""Distillation losses: ``Loss(hyper-parameters)(student, teacher[, target]) -> scalar``, pure tensor mathematics."""

from kdlab.losses.contrastive import CRDLoss
from kdlab.losses.dense import CWDLoss, MGDLoss, PixelCrossEntropy
from kdlab.losses.feature import ABLoss, ATLoss, FTLoss, HintLoss, OFDLoss, ReviewKDLoss, VIDLoss, ofd_margin
from kdlab.losses.relation import FSPLoss, PKTLoss, RKDLoss, SPLoss
from kdlab.losses.response import DISTLoss, DKDLoss, DMLLoss, KDLoss, LabelledCrossEntropy

__all__ = [
    "ABLoss",
    "ATLoss",
    "CRDLoss",
    "CWDLoss",
    "DISTLoss",
    "DKDLoss",
    "DMLLoss",
    "FSPLoss",
    "FTLoss",
    "HintLoss",
    "KDLoss",
    "LabelledCrossEntropy",
    "MGDLoss",
    "OFDLoss",
    "PKTLoss",
    "PixelCrossEntropy",
    "RKDLoss",
    "ReviewKDLoss",
    "SPLoss",
    "VIDLoss",
    "ofd_margin",
]
