"""The one training loop, its checkpoints and its metrics."""

from kdlab.training.checkpoints import ModelCard, load_model, load_weights, save_model
from kdlab.training.device import pick_device
from kdlab.training.image_quality import image_quality, psnr
from kdlab.training.loop import Fit, fit
from kdlab.training.metrics import classification_metrics, half_interval, predict_logits, segmentation_metrics
from kdlab.training.restoration import measure_each, restoration_metrics
from kdlab.training.self_ensemble import SelfEnsemble
from kdlab.training.supervised import Supervised

__all__ = [
    "Fit",
    "ModelCard",
    "SelfEnsemble",
    "Supervised",
    "classification_metrics",
    "fit",
    "half_interval",
    "image_quality",
    "load_model",
    "load_weights",
    "measure_each",
    "pick_device",
    "predict_logits",
    "psnr",
    "restoration_metrics",
    "save_model",
    "segmentation_metrics",
]
