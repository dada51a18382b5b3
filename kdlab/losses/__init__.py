"""Distillation losses: ``Loss(hyper-parameters)(student, teacher) -> scalar``, pure tensor mathematics."""

from kdlab.losses.response import KDLoss, LabelledCrossEntropy

__all__ = ["KDLoss", "LabelledCrossEntropy"]
