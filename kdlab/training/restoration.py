"""Judging a restorer as its users see it: whole images, one at a time, at their own size."""

import pandas as pd
import torch
from torch import nn

from kdlab.data.pairs import PairedImages
from kdlab.progress import progress
from kdlab.training.device import to_device
from kdlab.training.image_quality import image_quality

MANY = 20  # images: more of them get a progress bar
QUALITY = ("psnr", "ssim", "psnr_y", "ssim_y")


@torch.no_grad()
def measure_each(model: nn.Module, dataset: PairedImages) -> pd.DataFrame:
    """A row an image: "name", "weather", and what :func:`image_quality` says of the restored image.

    The model computes in eval mode on its own device, and is left in the mode that it was in.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    rows = []
    looked_at = range(len(dataset))
    for index in progress(looked_at, desc="measuring", unit="image") if len(dataset) > MANY else looked_at:
        pair = dataset.pairs[index]
        degraded, (clean, _) = dataset[index]
        restored = model(to_device(degraded[None], device)).float().cpu()
        quality = image_quality(restored, clean[None])
        rows.append({"name": pair.name, "weather": pair.weather} | {key: one.item() for key, one in quality.items()})
    model.train(training)
    return pd.DataFrame(rows)


def restoration_metrics(model: nn.Module, dataset: PairedImages) -> dict[str, float]:
    """Means over the weathers' means: "psnr", "ssim" (on RGB), "psnr_y", "ssim_y" (on Y), and "psnr_haze" and so on."""
    by_weather = measure_each(model, dataset).groupby("weather")[list(QUALITY)].mean()
    metrics = {name: float(by_weather[name].mean()) for name in QUALITY}
    for name in ("psnr", "ssim"):
        metrics |= {f"{name}_{weather}": float(value) for weather, value in by_weather[name].items()}
    return metrics
