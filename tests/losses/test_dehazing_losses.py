"""KT, Laplacian pyramid and Lab by their laws."""

import numpy as np
import pytest
import torch
from laws import check_common, check_half_precision, randn
from skimage.color import rgb2lab
from torch import nn

from kdlab import InputError
from kdlab.losses import KTLoss, LabLoss, LaplacianLoss, srgb_to_lab

LOSSES = {"KT": KTLoss(), "Laplacian": LaplacianLoss(levels=3), "Lab": LabLoss()}
EACH = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def images(seed=0, size=(2, 3, 4, 4)):
    """In 0.1 to 0.9, away from the kinks next to black."""
    return 0.1 + 0.8 * torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EACH
def test_laws_of_every_loss(loss):
    check_common(loss, images(0), images(1))
    check_half_precision(loss, images(0), images(1))
    assert loss(images(0), images(0)) == 0


@EACH
def test_doubling_the_batch_keeps_the_value_and_swapping_the_sides_too(loss):
    a, b = images(0), images(1)
    value = loss(a, b)
    torch.testing.assert_close(loss(torch.cat([a, a]), torch.cat([b, b])), value)
    torch.testing.assert_close(loss(b, a), value)
    for turn in (lambda x: x.flip(-1), lambda x: x.transpose(-1, -2)):
        torch.testing.assert_close(loss(turn(a), turn(b)), value)


def test_kt_is_the_mean_absolute_difference():
    student, teacher = randn(2, 4, 3, 5), randn(2, 4, 3, 5, seed=1)
    torch.testing.assert_close(KTLoss()(student, teacher), (student - teacher).abs().mean())


# --- the Laplacian pyramid -------------------------------------------------------------------------------------------


def pyramid(image, levels):
    """One channel's levels, pixel by pixel."""
    steps = np.arange(-2, 3)
    kernel = np.exp(-(steps[:, None] ** 2 + steps**2) / 2)
    kernel /= kernel.sum()
    made = []
    for _ in range(levels):
        padded, blurred = np.pad(image, 2, mode="edge"), np.empty_like(image)
        for row, column in np.ndindex(*image.shape):
            blurred[row, column] = (padded[row : row + 5, column : column + 5] * kernel).sum()
        made.append(image - blurred)
        height, width = (side // 2 for side in image.shape)
        image = blurred[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
    return made


def test_the_laplacian_loss_is_that_of_the_formula():
    a, b = (images(seed, (1, 3, 20, 17)) for seed in (0, 1))
    pyramids = [[pyramid(channel.numpy(), 5) for channel in one[0]] for one in (a, b)]
    expected = 0
    for level in range(5):
        lack = [np.abs(mine[level] - its[level]) for mine, its in zip(*pyramids, strict=True)]
        expected += np.mean(lack) / 4**level
    assert LaplacianLoss()(a, b).item() == pytest.approx(expected, rel=1e-12)


def test_the_laplacian_loss_does_not_see_brightness_and_sees_an_edge():
    a = images()
    assert LaplacianLoss(3)(a + 0.1, a) == pytest.approx(0, abs=1e-12)
    edge = a.clone()
    edge[..., 2:] += 0.1
    assert LaplacianLoss(3)(edge, a) > 1e-3


def test_more_levels_see_coarser_things():
    x = torch.zeros(1, 3, 32, 32)
    wave = (torch.arange(32) * torch.pi / 16).cos().expand_as(x)  # one period over the image
    values = [LaplacianLoss(levels)(wave, x).item() for levels in (1, 2, 3, 4, 5)]
    assert values == sorted(values)
    assert values[-1] > 3 * values[0]


def test_the_pyramid_has_nothing_that_a_device_without_float64_could_not_take():
    assert not LaplacianLoss().state_dict()
    assert not list(LaplacianLoss().buffers())


# --- Lab -------------------------------------------------------------------------------------------------------------


def test_lab_is_scikit_images():
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    x[0, :, :4] *= 0.05  # both pieces of both curves
    theirs = torch.from_numpy(rgb2lab(x.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)
    torch.testing.assert_close(srgb_to_lab(x), theirs, rtol=1e-9, atol=1e-9)


def test_white_black_and_grey_have_no_colour():
    grey = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    brightness, a, b = srgb_to_lab(grey)[0]
    assert brightness[0, 0] == pytest.approx(0, abs=1e-9)
    assert brightness[0, 3] == pytest.approx(100, abs=1e-3)
    assert max(a.abs().max(), b.abs().max()) < 0.01


def test_the_lab_loss_is_that_of_the_formula():
    a, b = images(0), images(1)

    def scaled(x):
        lab = rgb2lab(x.permute(0, 2, 3, 1).numpy())
        return np.stack([lab[..., 0] / 100, (lab[..., 1] + 128) / 255, (lab[..., 2] + 128) / 255])

    assert LabLoss()(a, b).item() == pytest.approx(np.mean((scaled(a) - scaled(b)) ** 2), rel=1e-9)


def test_lab_has_a_gradient_at_black_below_it_and_above_white():
    x = (
        torch.tensor([-2.0, -0.06, -0.055, 0.0, 0.04045, 1.0, 2.0])
        .view(1, 1, 1, -1)
        .repeat(1, 3, 1, 1)
        .requires_grad_()
    )
    srgb_to_lab(x)[:, 0].sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad > 0).all()


# --- the trap of a tanh and a clamp ----------------------------------------------------------------------------------


def test_behind_a_clamp_half_of_a_new_tanhs_pixels_learn_nothing():
    before = randn(1, 3, 32, 32).requires_grad_()
    for loss in (nn.L1Loss(), LabLoss()):
        shares = []
        for clamp in (nn.Hardtanh(0.0, 1.0), nn.Identity()):
            (gradient,) = torch.autograd.grad(loss(clamp(before.tanh()), torch.full_like(before, 0.5)), before)
            shares.append((gradient == 0).double().mean().item())
        assert shares[0] == pytest.approx(0.5, abs=0.05)
        assert shares[1] < 0.01


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: LaplacianLoss(0), "levels is 0"),
        (lambda x: LaplacianLoss()(x[..., :15, :], x[..., :15, :]), "15 high and 20 wide; 5 levels want 16x16"),
        (lambda x: LaplacianLoss()(x, x[..., 1:]), r"\(2, 3, 20, 20\).*\(2, 3, 20, 19\)"),
        (lambda x: LabLoss()(x[:, :1], x[:, :1]), r"images are \(2, 1, 20, 20\); wanted: \(n, 3, h, w\)"),
        (lambda x: srgb_to_lab(x[0]), r"images are \(3, 20, 20\)"),
        (lambda x: KTLoss()(x, x[:1]), r"\(2, 3, 20, 20\).*\(1, 3, 20, 20\)"),
        (lambda x: KTLoss()(x, x.mean(dim=(2, 3))), r"\(2, 3\)"),
    ],
)
def test_what_cannot_be_compared_is_named(call, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        call(torch.rand(2, 3, 20, 20))
