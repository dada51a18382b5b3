"""What a restored image is judged by: PSNR and SSIM, in colour and in brightness."""

import torch
from jaxtyping import Float
from torch import Tensor

from kdlab.errors import InputError

MOST_DB = 100.0  # the PSNR of identical images, which would be infinite and so would every mean


@torch.no_grad()
def image_quality(
    restored: Float[Tensor, "n 3 h w"], clean: Float[Tensor, "n 3 h w"]
) -> dict[str, Float[Tensor, " n"]]:
    """Of each image: "psnr" and "ssim" over red, green and blue, "psnr_y" and "ssim_y" over the luma Y, on the CPU.

    PSNR is in decibels, from the mean squared error of all pixels, at most 100. SSIM is at most 1, with the Gaussian
    window of 11x11 and sigma 1.5 of the paper, its mean over channels and positions; torchmetrics computes it. Both on
    values clamped to 0 to 1. Always say which of the two was measured: on Y both are higher, PSNR by one to three
    decibels.

    Raises:
        InputError: images of two sizes; images smaller than the window.

    Source: Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural Similarity,
    IEEE TIP 2004. Y as in ITU-R BT.601 with the range of studio signals.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes a second: not at the top

    if restored.shape != clean.shape:
        raise InputError(f"the restored images are {tuple(restored.shape)} and the clean ones {tuple(clean.shape)}.")
    if min(clean.shape[2:]) < 11:
        height, width = clean.shape[2:]
        raise InputError(f"images are {height} high and {width} wide; SSIM's window wants at least 11x11 pixels.")
    restored, clean = (images.cpu().double().clamp(0, 1) for images in (restored, clean))
    quality = {}
    for suffix, a, b in (("", restored, clean), ("_y", luma(restored), luma(clean))):
        quality[f"psnr{suffix}"] = psnr(a, b)
        # In float32, right to six digits and thirty times as fast: PyTorch's convolution in float64 is no fast one.
        ssim = structural_similarity_index_measure(a.float(), b.float(), data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)
        quality[f"ssim{suffix}"] = ssim.reshape(-1).double()
    return quality


@torch.no_grad()
def psnr(restored: Float[Tensor, "*n c h w"], clean: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n"]:
    """The PSNR of each image in decibels, as :func:`image_quality` has it."""
    restored, clean = (images.cpu().double().clamp(0, 1) for images in (restored, clean))
    error = (restored - clean).square().mean(dim=(-3, -2, -1))
    return (-10 * error.log10()).clamp(max=MOST_DB)


def luma(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Y of RGB in 0 to 1: 16/255 for black, 235/255 for white."""
    weights = images.new_tensor([65.481, 128.553, 24.966]).view(3, 1, 1) / 255
    return (images * weights).sum(dim=1, keepdim=True) + 16 / 255
