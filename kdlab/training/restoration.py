"""Judging a restorer as its users see it: whole images, one at a time, at their own size."""

import pandas as pd
import torch
from torch import nn

from kdlab import processes
from kdlab.data.pairs import PairedImages
from kdlab.modes import evaluating
from kdlab.progress import progress
from kdlab.training.device import to_device
from kdlab.training.image_quality import image_quality

MANY = 20  # images: more of them get a progress bar
QUALITY = ("psnr", "ssim", "psnr_y", "ssim_y")


@torch.no_grad()
def measure_each(model: nn.Module, dataset: PairedImages) -> pd.DataFrame:
    """A row an image: "name", "weather", and what :func:`image_quality` says of the restored image.

    The model computes in eval mode on its own device, and is left in the modes that it was in. Several processes share
    the images.
    """
    looked_at = range(processes.own_place(), len(dataset), processes.count())
    qualities = []
    with evaluating(model) as device:
        for index in progress(looked_at, desc="measuring", unit="image") if len(looked_at) > MANY else looked_at:
            degraded, (clean, _) = dataset[index]
            restored = model(to_device(degraded[None], device)).float().cpu()
            qualities.append(image_quality(restored, clean[None]))
    own = torch.tensor([[float(one[name]) for name in QUALITY] for one in qualities], dtype=torch.float64)
    measured = processes.of_all(own.reshape(-1, len(QUALITY)))
    names = pd.DataFrame([{"name": pair.name, "weather": pair.weather} for pair in dataset.pairs])
    return names.join(pd.DataFrame(measured.numpy(), columns=list(QUALITY)))


def restoration_metrics(model: nn.Module, dataset: PairedImages) -> dict[str, float]:
    """Means over the weathers' means: "psnr", "ssim" (on RGB), "psnr_y", "ssim_y" (on Y), and "psnr_haze" and so on."""
    by_weather = measure_each(model, dataset).groupby("weather")[list(QUALITY)].mean()
    metrics = {name: float(by_weather[name].mean()) for name in QUALITY}
    for name in ("psnr", "ssim"):
        metrics |= {f"{name}_{weather}": float(value) for weather, value in by_weather[name].items()}
    return metrics
