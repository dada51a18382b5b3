"""What distilling a YOLO detector takes that is free of ultralytics; the training itself is in :mod:`kdlab.yolo`."""

from kdlab.detection.classes import check_classes
from kdlab.detection.distiller import DetectionDistiller, tapped_channels
from kdlab.detection.settings import LAYERS, STRIDE, Distillation, Exported, YoloRun, YoloSettings, check_size

__all__ = [
    "LAYERS",
    "STRIDE",
    "DetectionDistiller",
    "Distillation",
    "Exported",
    "YoloRun",
    "YoloSettings",
    "check_classes",
    "check_size",
    "tapped_channels",
]
