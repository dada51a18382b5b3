"""Connectors: the shapes they make, and what they leave alone."""

import pytest
import torch
from torch import nn

from kdlab import InputError
from kdlab.distill import (
    ConvConnector,
    Each,
    Normalize,
    Paraphraser,
    Pixels,
    Pooled,
    Projector,
    Resize,
    ReviewFusion,
    Translator,
)
from kdlab.losses import KDLoss

MAPS = torch.randn(2, 6, 8, 8)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_a_convolution_keeps_the_size_and_the_sign(kernel_size, norm):
    connector = ConvConnector(6, 10, kernel_size, norm)
    out = connector(MAPS)
    assert out.shape == (2, 10, 8, 8)
    assert (out < 0).any()  # no activation unless one is asked for
    assert (ConvConnector(6, 10, kernel_size, norm, nn.ReLU())(MAPS) >= 0).all()


def test_resizing_has_nothing_to_learn_and_keeps_a_constant():
    for mode in ("bilinear", "nearest", "area"):
        resize = Resize((4, 3), mode)
        assert not list(resize.parameters())
        torch.testing.assert_close(resize(torch.full((1, 2, 8, 6), 3.0)), torch.full((1, 2, 4, 3), 3.0))
    torch.testing.assert_close(Resize(4)(MAPS), nn.AvgPool2d(2)(MAPS))  # between positions, not from corner to corner
    torch.testing.assert_close(Resize(1, "area")(MAPS)[..., 0, 0], MAPS.mean(dim=(2, 3)))


def test_every_position_is_a_sample_of_its_own():
    pixels = Pixels()(MAPS)
    assert pixels.shape == (2 * 8 * 8, 6)
    torch.testing.assert_close(pixels[64 + 8 * 3 + 5], MAPS[1, :, 3, 5])
    other = torch.randn_like(MAPS)
    by_pixel = [KDLoss()(MAPS[:, :, i, j], other[:, :, i, j]) for i in range(8) for j in range(8)]
    torch.testing.assert_close(KDLoss()(pixels, Pixels()(other)), torch.stack(by_pixel).mean())


def test_pooling_to_a_vector_and_to_another_width():
    torch.testing.assert_close(Pooled()(MAPS), MAPS.mean(dim=(2, 3)))
    assert Pooled(6, 4)(MAPS).shape == (2, 4)


def test_normalising_makes_unit_vectors_and_leaves_zero():
    out = Normalize()(MAPS)
    torch.testing.assert_close(out.flatten(1).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(out * MAPS.flatten(1).norm(dim=1).view(2, 1, 1, 1), MAPS)
    assert (Normalize()(torch.zeros(2, 3)) == 0).all()


def test_the_common_space_of_three_teachers_has_the_published_parameters():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    students = [count(Projector(c, c // 2)) for c in (64, 128, 256, 256)]
    assert students == [27_648, 110_592, 442_368, 442_368]
    both_ways = [
        count(Projector(c, c // 2)) + 3 * (count(Projector(c, c // 2)) + count(Projector(c // 2, c)))
        for c in (64, 128, 256, 256)
    ]
    assert both_ways == [276_480, 1_105_920, 4_423_680, 4_423_680]
    assert sum(both_ways) == 10_229_760
    projector = Projector(6, 3)
    first, _, second = projector
    torch.testing.assert_close(projector(MAPS), second(first(MAPS).relu()))
    for weight in Projector(64, 64).parameters():
        assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)  # Kaiming's


def test_a_paraphraser_learns_to_give_the_map_back():
    torch.manual_seed(0)
    paraphraser, maps = Paraphraser(6, rate=0.5), torch.randn(8, 6, 4, 4).relu()
    assert paraphraser(maps).shape == (8, 3, 4, 4)
    optimizer = torch.optim.Adam(paraphraser.parameters(), 1e-2)
    errors = []
    for _ in range(60):
        error = (paraphraser.reconstruct(maps) - maps).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("norm", [True, False])
def test_a_paraphraser_has_batchnorm_or_biases(norm):
    layers = list(Paraphraser(6, norm=norm).modules())
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == (6 if norm else 0)
    assert {layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d)} == {norm}


def test_the_translator_makes_as_many_factors():
    translator = Translator(4, 3)
    assert translator(torch.randn(2, 4, 8, 8)).shape == (2, 3, 8, 8)
    assert {m.negative_slope for m in translator if isinstance(m, nn.LeakyReLU)} == {0.1}  # the official one


def test_the_fusion_lets_each_stage_hear_the_deeper_ones_only():
    torch.manual_seed(0)
    fusion = ReviewFusion([4, 8, 8], [6, 10, 12], mid=5).eval()
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4), torch.randn(2, 8, 1, 1)]
    out = fusion(maps)
    assert [tuple(o.shape) for o in out] == [(2, 6, 8, 8), (2, 10, 4, 4), (2, 12, 1, 1)]
    changed = fusion([maps[0], maps[1] + 1, maps[2]])
    assert [torch.equal(a, b) for a, b in zip(out, changed, strict=True)] == [False, False, True]


def test_the_fusion_weighs_a_stage_and_the_deeper_one_by_two_maps():
    fusion = ReviewFusion([4, 8], [6, 10], mid=5).eval()
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]
    own, deeper = fusion.narrow[0](maps[0]), fusion.narrow[1](maps[1]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    weights = fusion.attention[0](torch.cat([own, deeper], 1)).sigmoid()
    fused = own * weights[:, 0][:, None] + deeper * weights[:, 1][:, None]
    torch.testing.assert_close(fusion(maps)[0], fusion.widen[0](fused))
    assert fusion.widen[0][0].kernel_size == (3, 3)
    assert [narrow[0].out_channels for narrow in fusion.narrow] == [5, 5]
    assert [widen[0].in_channels for widen in fusion.widen] == [5, 5]


def test_each_connector_gets_its_own_tensor():
    out = Each(nn.Identity(), Pooled())([MAPS, MAPS])
    assert [o.ndim for o in out] == [4, 2]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ConvConnector(0, 4), "student_channels is 0"),
        (lambda: ConvConnector(4, 4, 5), "kernel_size is 5; wanted: 1 or 3"),
        (lambda: Resize(0), "size is 0"),
        (lambda: Resize((4, 4, 4)), r"size is \(4, 4, 4\)"),
        (lambda: Resize(4, "cubic"), "mode is 'cubic'"),
        (lambda: Pooled(out=4), "needs the channels"),
        (lambda: Pooled(0, 4), "channels is 0"),
        (lambda: Paraphraser(4, rate=0.0), "rate is 0.0"),
        (lambda: Paraphraser(4, rate=1.5), "rate is 1.5"),
        (lambda: Translator(4, 0), "factors is 0"),
        (lambda: ReviewFusion([4], [4, 8]), "1 stages and teacher_channels 2"),
        (lambda: ReviewFusion([], []), "0 stages and teacher_channels 0"),
        (lambda: ReviewFusion([4], [4], mid=0), "mid is 0"),
        (lambda: ReviewFusion([4], [4])([MAPS, MAPS]), "2 maps were given to a fusion of 1 stages"),
        (lambda: Each(Pooled())([MAPS, MAPS]), "2 tensors were given to 1 connectors"),
    ],
)
def test_what_makes_no_sense_is_refused(build, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        build()


def test_a_paraphraser_of_few_channels_keeps_a_factor():
    assert Paraphraser(6, rate=0.1)(MAPS[:, :1].repeat(1, 6, 1, 1)).shape[1] == 1
