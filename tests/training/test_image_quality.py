"""PSNR and SSIM: equal to torchmetrics', and what they must say of simple images."""

import math

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from kdlab import InputError
from kdlab.data.pairs import Pair, PairedImages
from kdlab.training import measure_each, restoration_metrics
from kdlab.training.image_quality import image_quality, luma, psnr


def images(n=3, size=24):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(n, 3, size, size + 5, generator=generator)
    return (clean + 0.1 * torch.randn(clean.shape, generator=generator)), clean


def test_each_image_has_the_values_of_torchmetrics():
    restored, clean = images()
    quality = image_quality(restored, clean)
    clamped = restored.clamp(0, 1)
    for i in range(3):
        one, other = clamped[i : i + 1], clean[i : i + 1]
        for suffix, a, b in (("", one, other), ("_y", luma(one), luma(other))):
            decibels = peak_signal_noise_ratio(a, b, data_range=1.0).item()
            ssim = structural_similarity_index_measure(a, b, data_range=1.0).item()
            assert quality[f"psnr{suffix}"][i].item() == pytest.approx(decibels, rel=1e-4)
            assert quality[f"ssim{suffix}"][i].item() == pytest.approx(ssim, rel=1e-4)


def test_one_image_has_the_psnr_that_it_has_among_others():
    restored, clean = images()
    found = [psnr(one, other).item() for one, other in zip(restored, clean, strict=True)]
    assert found == image_quality(restored, clean)["psnr"].tolist() == psnr(restored, clean).tolist()
    assert psnr(clean[0], clean[0]).item() == 100


def test_identical_images_have_a_finite_best():
    _, clean = images()
    quality = image_quality(clean, clean)
    assert quality["psnr"].tolist() == [100.0] * 3
    assert quality["ssim"].tolist() == pytest.approx([1.0] * 3)


def test_a_constant_error_has_the_psnr_of_its_formula():
    clean = torch.full((1, 3, 16, 16), 0.5)
    quality = image_quality(clean + 0.1, clean)
    assert quality["psnr"].item() == pytest.approx(20.0, abs=1e-4)
    assert quality["psnr_y"].item() == pytest.approx(-20 * math.log10(0.1 * 219 / 255), abs=1e-4)


def test_what_lies_beyond_black_and_white_counts_as_these():
    white = torch.ones(1, 3, 16, 16)
    assert image_quality(white * 3, white)["psnr"].item() == 100


def test_luma_is_matlabs():
    colours = torch.eye(3).view(3, 3, 1, 1)
    assert luma(colours).flatten().tolist() == pytest.approx([(16 + w) / 255 for w in (65.481, 128.553, 24.966)])
    assert luma(torch.ones(1, 3, 1, 1)).item() == pytest.approx(235 / 255)


def test_images_that_cannot_be_compared_are_named(shapes_unchecked):
    with pytest.raises(InputError, match=r"\(1, 3, 16, 16\).*\(1, 3, 16, 15\)"):
        image_quality(torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 15))
    with pytest.raises(InputError, match="images are 10 high and 30 wide"):
        image_quality(torch.ones(1, 3, 10, 30), torch.ones(1, 3, 10, 30))


class Restless(nn.Module):
    """Another one in training mode."""

    def forward(self, images):
        return 1 - images if self.training else images


def test_the_mean_is_over_weathers_and_the_model_computes_in_eval_mode():
    drawn = torch.randint(256, (4, 3, 12, 12), dtype=torch.uint8)
    clean, degraded = drawn[0], (drawn[1], drawn[2], drawn[3] // 2)
    named = zip(degraded, ("haze", "haze", "rain"), strict=True)
    pairs = PairedImages([Pair(one, clean, weather, weather) for one, weather in named], ("haze", "rain"))
    model = Restless().train()
    metrics, each = restoration_metrics(model, pairs), measure_each(nn.Identity(), pairs)
    assert model.training
    haze, rain = (each[each["weather"] == weather]["psnr"].mean() for weather in ("haze", "rain"))
    assert (metrics["psnr_haze"], metrics["psnr_rain"]) == pytest.approx((haze, rain))
    assert metrics["psnr"] == pytest.approx((haze + rain) / 2)


class Brighter(nn.Module):
    """Twice as bright, which goes beyond white."""

    def forward(self, images):
        assert not torch.is_grad_enabled()
        return 2 * images


def test_every_image_and_every_weather_has_its_own_numbers():
    degraded, clean = (part.clamp(0, 1).mul(255).to(torch.uint8) for part in images(2))
    weathers = ("haze", "rain")
    pairs = PairedImages([Pair(degraded[i], clean[i], weathers[i], str(i)) for i in range(2)], weathers)
    metrics, each = restoration_metrics(Brighter(), pairs), measure_each(Brighter(), pairs)
    quality = image_quality(2 * (degraded / 255), clean / 255)
    assert each["name"].tolist() == ["0", "1"]
    for name, values in quality.items():
        assert each[name].tolist() == pytest.approx(values.tolist())
        assert metrics[name] == pytest.approx(values.mean().item())
    for name in ("psnr", "ssim"):
        assert [metrics[f"{name}_haze"], metrics[f"{name}_rain"]] == pytest.approx(quality[name].tolist())
